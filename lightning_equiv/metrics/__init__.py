"""How far a network is from a symmetry."""
