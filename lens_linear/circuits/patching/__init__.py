"""What counts for an answer: shares of a logit, and what patching from another run does."""
