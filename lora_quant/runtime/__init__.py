"""Running packs: everything that needs ONNX Runtime."""
