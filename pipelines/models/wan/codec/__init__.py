"""The autoencoder: its tiles, its coders, their costs, and conditions made of pictures."""
