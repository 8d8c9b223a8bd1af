"""Serves the web page on the device: uploads, comparison, answers."""
