"""Reading a graph, finding where adapters attach, adding their branches."""
