"""The frozen model while it is trained upon: everything that is done to it, and its undoing."""
