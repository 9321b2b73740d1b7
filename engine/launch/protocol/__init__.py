"""What the engine and its ranks say to each other, however the ranks were started."""
