"""Tasks: columns, losses and metrics, one file each."""
