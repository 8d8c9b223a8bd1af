"""What the machine and the bundle have and lack."""
