"""Target `qnn`: a graph of integers for the HTP."""
