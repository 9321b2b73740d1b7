"""Videos to latents and back, in tiles over all ranks."""
