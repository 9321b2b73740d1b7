"""Tencent's HunyuanVideo, text to video and image to video, built on diffusers' modules."""
