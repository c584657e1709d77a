"""Q/DQ and packed integers in a graph."""
