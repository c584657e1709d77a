"""The base graph with changed weights: what a pack is verified against."""
