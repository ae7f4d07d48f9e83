"""Schedules over layers: the least energy, its rivals, and what steering does to text."""
