"""From a request to a plan, to ranks, to a video."""
