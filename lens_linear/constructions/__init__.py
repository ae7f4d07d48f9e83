"""The constructions room."""
