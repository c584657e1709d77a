"""Target `onnxruntime`: open ranks, and an adapter file per use case."""
