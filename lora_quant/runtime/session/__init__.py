"""Sessions that switch use cases from run to run."""
