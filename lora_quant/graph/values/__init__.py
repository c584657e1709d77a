"""Values and places of the base's weights and parameters."""
