"""Which file belongs to which graph and use case."""
