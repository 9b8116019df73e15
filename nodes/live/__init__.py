"""What a running node shows: progress, the run's chart, previews, and the browsers that look."""
