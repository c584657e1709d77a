"""What the files of a folder are, told by their content."""
