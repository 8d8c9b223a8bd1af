"""A network as data, as a checkpoint and as a torch module."""
