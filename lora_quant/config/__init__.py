"""Configuration classes, document reading and writing, schemas; import the modules you need."""
