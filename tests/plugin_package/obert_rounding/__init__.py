"""A package of its own that adds one pass and one back end through entry points."""
