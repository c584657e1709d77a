"""Bringing the encodings of base and use cases together; see merge_encodings."""
