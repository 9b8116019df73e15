"""Captions written by a tagger.

``tagger`` runs the model, ``scores`` asks it about each picture once, ``tag_options`` turns what it
says into captions, ``auto_tag`` does all of it to a dataset.
"""
