"""Choosing the good pictures of a dataset.

``scores`` measures how good each is; ``reference`` compares styles without a model; ``selection``
decides by a rule which ones stay, and says why.
"""
