"""Predicts the time and memory of training a decoder in each hybrid of parallelisms."""
