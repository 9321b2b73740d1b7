"""What measures and checks: ``bench``, ``doctor``, ``verify``."""
