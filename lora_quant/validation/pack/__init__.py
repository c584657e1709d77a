"""What a pack is held against: its manifest, and every file that it names."""
