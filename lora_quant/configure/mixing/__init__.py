"""Which adapters a use case mixes, in which order and how strong."""
