"""Graphs that already hold branches, as an exporter wrote them for one use case."""
