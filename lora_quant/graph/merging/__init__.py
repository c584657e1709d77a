"""Putting adapters into the base's weights."""
