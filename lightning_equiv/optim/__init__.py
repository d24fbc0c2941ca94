"""Optimizers that know the blocks of equivariant layers."""
