"""Recipes, data mixtures and the loop that trained the bundled models."""
