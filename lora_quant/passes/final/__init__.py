"""A graph that is final: its branches stay as they are, and use cases bring values for them."""
