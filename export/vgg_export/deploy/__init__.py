"""Takes a bundle to a board over ssh."""
