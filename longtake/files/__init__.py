"""Files: bounded reads, and atomic writes."""
