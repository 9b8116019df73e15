"""What nodes of every kind need: wires, checks of inputs, folders, what is wired to them."""
