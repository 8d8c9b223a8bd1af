"""Chooses calibration images by their content and gives them as batches through the device's own
preprocessing."""
