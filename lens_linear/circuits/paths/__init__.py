"""Attention-only models whole: bigrams, skip-trigrams, every end-to-end path and its importance."""
