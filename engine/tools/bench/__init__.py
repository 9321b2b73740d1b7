"""Measures the machine at hand: kernels, links, a step, decoding; and writes its profile."""
