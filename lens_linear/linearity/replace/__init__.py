"""Run a model with layers replaced by their affine fit, and what that costs."""
