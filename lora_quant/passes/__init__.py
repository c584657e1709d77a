"""The steps of a compilation, their contract, and the order they run in."""
