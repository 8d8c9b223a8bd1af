"""The page on the device: uploads, comparison, answers."""
