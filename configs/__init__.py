"""Options and requests, declared once, and presets of models and hardware."""
