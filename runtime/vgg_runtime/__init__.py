"""What runs on the device: the standard library, numpy, Pillow and onnxruntime, nothing else."""

__version__ = "0.1.0"
