"""How a strategy takes hold of a model, and lets go."""
