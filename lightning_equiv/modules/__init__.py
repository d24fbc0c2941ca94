"""Modules to subclass and to build with: ready trainings, families of equivariant maps, layers of their clones."""
