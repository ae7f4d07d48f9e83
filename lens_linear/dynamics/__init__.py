"""The dynamics room."""
