"""A graph of integers and fixed shapes, as compilers of devices want it."""
