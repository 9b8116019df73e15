"""The nodes that choose how to train: network, optimizer, schedule, loss, previews, checkpoints."""
