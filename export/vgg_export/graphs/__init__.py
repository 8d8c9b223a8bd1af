"""ONNX graphs in float: exported, audited, rewritten."""
