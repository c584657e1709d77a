"""Engines that run or compile graphs: ONNX Runtime, and its provider for the HTP."""
