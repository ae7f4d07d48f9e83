"""Run with attention or context frozen, blocks as maps, attention scores rebuilt."""
