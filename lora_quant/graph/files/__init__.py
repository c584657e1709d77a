"""Graph files and their external data, read and written without loading weights."""
