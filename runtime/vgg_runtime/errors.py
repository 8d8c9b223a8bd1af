"""What can be wrong with what the runtime is given. Each message says what was found, what was expected, what
to do."""


class RuntimeInputError(Exception):
    """The bundle, an image or an option cannot be used (exit code 2)."""


class ImageError(RuntimeInputError):
    """A picture that cannot be read."""


class BundleError(RuntimeInputError):
    """A bundle that is missing, damaged or newer than this runtime."""
