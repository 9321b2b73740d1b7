"""Starting, watching and ending ranks."""
