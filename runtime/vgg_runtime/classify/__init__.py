"""Using one variant: a call for scripts, a command line, and a folder with nothing else in it."""
