"""Tensors as graph inputs with defaults, and ranks without a fixed size."""
