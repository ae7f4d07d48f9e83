"""Associative memories: energies, retrieval, capacity, and where a trained head sits."""
