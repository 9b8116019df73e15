"""Graphs and training jobs without a browser, for launch.py."""
