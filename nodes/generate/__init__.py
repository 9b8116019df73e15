"""The nodes that make a dataset with the base model."""
