"""A bundle onto a board over ssh."""
