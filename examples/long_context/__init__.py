"""Trains a LLaMA on long sequences under data, tensor and sequence parallelism and ZeRO."""
