"""ConstraintRelaxation: a non-equivariant term that rises, decays and is gone at the end."""
