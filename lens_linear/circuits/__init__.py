"""The circuits room."""
