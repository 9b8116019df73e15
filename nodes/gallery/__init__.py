"""The gallery of Curate Dataset: what it shows, its routes and its thumbnails."""
