"""Open a model: bundled, from the Hub, from a folder, or a toy built on the spot."""
