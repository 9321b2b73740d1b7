"""How a model family's tokens are embedded, conditioned and denoised: one folder a family."""
