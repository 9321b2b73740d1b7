"""Model families, one folder each, and the loading, denoising and decoding that they share."""
