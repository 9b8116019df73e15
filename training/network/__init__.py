"""What is trained: which layers get an adapter, of what kind and size, and where it begins."""
