"""SymmetryCloning: a plain network taught a symmetry by an equivariant teacher."""
