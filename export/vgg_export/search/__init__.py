"""The search under a budget."""
