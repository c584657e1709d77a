"""Writing a `lora_config.yaml`: for a base and adapters, or for a folder of other tools' files."""
