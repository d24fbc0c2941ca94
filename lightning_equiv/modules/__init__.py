"""LightningModules to subclass, and the mixin that brings strategies along."""
