"""Input pictures: decoded in a process of their own, color-managed, resized."""
