"""What else would run: other places of weights, other requests, other models."""
