"""Data: files and data sets in, batches of arrays out."""
