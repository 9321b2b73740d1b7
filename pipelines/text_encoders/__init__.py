"""Configurations and weight shapes of text encoders that model families share; without torch."""
