"""Exact circuits and honest linearity for TransformerLens 4."""
__version__ = "0.1.0"
