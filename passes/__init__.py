"""Passes, one file each; the mathematics of each in a file beside it that knows no graph."""
