"""The folder that goes to the board, and the figures in it."""
