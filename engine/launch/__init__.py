"""Start ranks, watch them, and end them."""
