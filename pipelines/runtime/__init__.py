"""The denoising loop, and what saves and traces it."""
