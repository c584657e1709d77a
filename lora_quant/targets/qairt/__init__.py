"""The target qairt."""
