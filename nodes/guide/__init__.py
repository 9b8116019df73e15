"""The guide of `docs/` as pages that the browser opens from a node's help."""
