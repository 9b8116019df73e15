"""What is learned from a picture: noise, noise level, target, loss and its weight."""
