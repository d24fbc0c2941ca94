"""Networks and trainings that the examples and the configurations name, `lightning_equiv.networks.tasks.Particles`."""
