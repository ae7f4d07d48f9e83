"""Induction heads: scores with controls, the mechanism checked by intervention, ablation."""
