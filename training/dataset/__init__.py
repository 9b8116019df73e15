"""Everything between a folder of pictures and the tensors of a batch.

``samples`` holds the values on the wire; ``folder`` reads them from disk, ``save`` writes them
back; ``caption_edits`` and ``caption_options`` change what is said, ``fit`` and ``buckets`` how a
picture is scaled and cut; ``report`` looks at all of it.
"""
