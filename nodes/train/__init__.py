"""The nodes that train, and those that save and load a training state."""
