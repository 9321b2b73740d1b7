"""tencent's HunyuanVideo, text to video, over diffusers' modules."""
