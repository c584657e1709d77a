"""The smallest plugin of lora-quant."""
