"""One head: its QK and OV circuit, composition with other heads, singular directions, a window on its map."""
