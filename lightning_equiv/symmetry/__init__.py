"""How an element moves a whole call, output or batch: `Symmetry`, graphs, trees."""
