"""Linear attention that is least squares; slow memory in weights, fast memory in context."""
