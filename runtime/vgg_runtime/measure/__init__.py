"""Measuring variants, each in a process of its own, and what follows from the figures."""
