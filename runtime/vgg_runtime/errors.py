"""Exceptions for input that the runtime cannot use. Each message says what was found, what was expected and
what to do."""


class RuntimeInputError(Exception):
    """The bundle, an image or an option cannot be used (exit code 2)."""


class ImageError(RuntimeInputError):
    """A picture that cannot be read."""


class BundleError(RuntimeInputError):
    """A bundle that is missing, damaged or newer than this runtime."""


class ModelError(Exception):
    """A variant cannot be loaded or run, hangs, or does not answer as it should (exit code 1)."""
