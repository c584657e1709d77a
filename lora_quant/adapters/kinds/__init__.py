"""Lowering rules, one family a file, found through the entry points of the package."""
