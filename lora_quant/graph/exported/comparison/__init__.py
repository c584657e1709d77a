"""Two graphs as values: numbered, paired, and where they differ first."""
