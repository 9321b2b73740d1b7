"""Wan 2.1 and 2.2: text-to-video, image-to-video, and first and last frame to video."""
