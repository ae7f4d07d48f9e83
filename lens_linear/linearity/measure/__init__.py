"""How linear a layer is: scores with nulls and intervals, layer maps, geometry, what an affine fit misses."""
