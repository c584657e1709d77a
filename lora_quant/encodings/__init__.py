"""Quantization encodings: the value, AIMET's dialects, conversion, algebra; import the modules."""
