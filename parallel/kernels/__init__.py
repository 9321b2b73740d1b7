"""Local attention: the kernels that one rank runs on its own tensors.

:mod:`kernel` says what a kernel is, :mod:`table` lists them and selects one, :mod:`attend` runs it.
"""
