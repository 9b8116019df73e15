"""What a run needs of the device's memory, told before it begins."""
