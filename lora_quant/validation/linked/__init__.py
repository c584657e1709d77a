"""Files against the graphs and files that they name, one file per kind."""
