"""The command line, obertc."""
