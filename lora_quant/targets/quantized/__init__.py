"""Codes and grids that targets share."""
