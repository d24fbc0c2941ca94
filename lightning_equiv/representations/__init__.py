"""How an element moves one tensor: irreps, points, tensors, images, permutations, strings."""
