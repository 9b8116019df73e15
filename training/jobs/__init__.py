"""A training run as a folder of its own, to be trained outside of the graph."""
