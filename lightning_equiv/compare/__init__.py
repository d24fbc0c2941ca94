"""Which strategy for my data: every way of training, several seeds, one table."""
