"""LoRAs: read, matched to a model's tensors, and fused into them while they are read."""
