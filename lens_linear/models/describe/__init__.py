"""Shape, weights and their verification against the model, rotary tables, parameter counts."""
