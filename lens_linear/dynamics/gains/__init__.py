"""Where a concept points at each layer, and how far the output moves when the state is pushed there."""
