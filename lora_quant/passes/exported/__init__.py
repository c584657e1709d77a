"""Use cases that come as graphs of their own: taking them apart into adapters and slots."""
