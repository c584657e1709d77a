"""The modules of a quantized graph, as the float graph that it was made from tells them."""
