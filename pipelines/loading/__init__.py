"""Model files: found, checked, read into modules."""
