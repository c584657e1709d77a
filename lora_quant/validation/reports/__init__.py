"""A validation as text for machines, one file per format."""
