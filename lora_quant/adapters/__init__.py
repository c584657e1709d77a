"""Adapter checkpoints, read and lowered to one canonical form. See `adapter.load_adapter`."""
