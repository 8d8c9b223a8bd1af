"""ONNX graphs in 8-bit integers."""
