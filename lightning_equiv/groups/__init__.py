"""What a symmetry is: groups, their elements, and how these move tensors."""
