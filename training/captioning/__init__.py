"""Captions for pictures, from an image-to-text model in a folder of the person's own."""
