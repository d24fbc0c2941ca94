"""What is an `nn.Module` or describes one: features of layers, families, branches, teachers, cloned layers."""
