"""Files of adapters and of base models: headers, tensors on request, configurations."""
