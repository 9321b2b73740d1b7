"""The LoRAs of a request: found, matched to the model, and fused on the ranks between jobs."""
