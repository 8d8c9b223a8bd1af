"""Pictures: which ones, in which set, and as tensors."""
