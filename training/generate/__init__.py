"""Training pictures that the base model paints itself: what it is asked for, and under which
captions the pictures are trained.
"""
