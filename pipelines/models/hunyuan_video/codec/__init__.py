"""The autoencoder: its tiles, its coders and their costs."""
