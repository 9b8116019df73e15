"""The nodes that save, apply, merge, compare and judge LoRAs."""
