"""Files of weights: found, downloaded, opened, and their headers checked."""
