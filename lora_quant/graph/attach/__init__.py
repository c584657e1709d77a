"""Finding the nodes that adapters attach to."""
