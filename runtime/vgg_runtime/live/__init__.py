"""Classifies a stream of frames."""
