"""A compression compiler for BERT-type encoders."""

__version__ = "0.1.0"
