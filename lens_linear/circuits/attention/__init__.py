"""What a head attends to, and which components make its attention scores."""
