"""One file by itself: graphs, weights, adapters, lists and texts of devices."""
