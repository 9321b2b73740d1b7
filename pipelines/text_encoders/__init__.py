"""Encoders of prompts and pictures that model families share.

Their configurations, and the names and shapes of their tensors, are described without torch.
"""
