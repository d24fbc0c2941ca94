"""Which symmetry does my data have: exact tests of its law, and generators that nobody named."""
