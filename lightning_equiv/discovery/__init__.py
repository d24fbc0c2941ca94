"""Which symmetry does my data have."""
