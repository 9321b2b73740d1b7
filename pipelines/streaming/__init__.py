"""Brings blocks of weights to a device while others compute: from host memory, or from files."""
