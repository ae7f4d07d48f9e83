"""The linalg room."""
