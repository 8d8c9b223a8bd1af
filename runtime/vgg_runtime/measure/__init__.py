"""Measures variants, each in a process of its own, and draws conclusions from the figures."""
