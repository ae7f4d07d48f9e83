"""From one master per lesson to exercise, solution and instructor notebooks."""
