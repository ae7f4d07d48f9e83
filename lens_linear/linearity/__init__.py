"""The linearity room."""
