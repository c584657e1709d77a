"""Products, factorisations and random numbers that rules share."""
