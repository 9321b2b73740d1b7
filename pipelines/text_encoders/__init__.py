"""Configurations and weights of text encoders that several model families use; without torch."""
