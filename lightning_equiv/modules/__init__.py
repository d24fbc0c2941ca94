"""Modules to build with: families of equivariant maps, and layers assembled from their clones."""
