"""Where weights live in a plan, the bytes that they take there, and how they arrive."""
