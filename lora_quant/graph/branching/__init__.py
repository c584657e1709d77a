"""Adding branches, vectors and gates to a graph."""
