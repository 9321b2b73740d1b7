"""What can be asked for, declared once, and presets of models and hardware."""
