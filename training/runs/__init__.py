"""A run: its settings, the loop, the states it can be frozen in, and their files."""
