"""Optimizers of many packages behind one table, and what people type for them."""
