"""Input pictures: decoded in a separate process, color-managed, resized."""
