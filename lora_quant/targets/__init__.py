"""What is written for each kind of device, and how a pack appears."""
