"""Back ends: a graph in, files or modules out."""
