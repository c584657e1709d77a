"""What devices and their tools cannot take, or get wrong."""
