"""Layer families: what the layers of one library say of their features."""
