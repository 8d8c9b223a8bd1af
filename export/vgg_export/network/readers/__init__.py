"""Readers of checkpoint files that other programs wrote."""
