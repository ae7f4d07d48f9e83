"""What each layer already predicts: affine maps to the output, in closed form."""
