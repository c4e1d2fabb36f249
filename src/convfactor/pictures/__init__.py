"""Kernels as coloured cells of a page, and the colours that all pictures share."""
