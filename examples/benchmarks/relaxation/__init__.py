"""When does relaxing an equivariant network help? Three small problems."""
