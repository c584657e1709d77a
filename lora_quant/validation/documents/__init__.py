"""A YAML or JSON document by itself: its schema, its reader, and places in its text."""
