"""Types of fields that requests and engines share, and how their text is read."""
