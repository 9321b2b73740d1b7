"""Pictures, frames, latents and snapshots, and the files that hold them."""
