"""Files that targets write, and the folder that they appear in."""
