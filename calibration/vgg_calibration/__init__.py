"""Calibration images: which ones, what they are (by content), and as batches through the device's own
preprocessing."""
