"""What runs on the device: the standard library, numpy, Pillow and onnxruntime, nothing else."""

import os

# onnxruntime's wheels from 1.29 on upload events and write a device identifier unless this is set before it
# is imported, and processes that are started inherit it. A value that the person has set stays, whatever it
# is.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.3.0"
