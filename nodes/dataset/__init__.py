"""The nodes that build, tag, caption, curate, report and save datasets."""
