"""Classifying a stream of frames."""
