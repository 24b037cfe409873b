"""The torch back end: a graph as a trainable module."""
