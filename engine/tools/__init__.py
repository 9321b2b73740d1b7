"""The commands that measure and check: ``bench``, ``doctor``, ``verify``."""
