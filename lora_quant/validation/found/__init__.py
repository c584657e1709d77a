"""What there is to check below a path, and what each file is."""
