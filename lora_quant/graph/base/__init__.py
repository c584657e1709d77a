"""The base graph: opened once, and what is read off it."""
