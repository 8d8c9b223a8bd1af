"""Opens safetensors files, and says why one cannot be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vgg_export.core.errors import CheckpointError
from vgg_export.core.files import opened_by_library


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """For a block in which the library reads the file.

    Raises:
        CheckpointError: it is no safetensors file, or damaged.
        OSError: the system refuses to open it, or there is no such file.
        OpeningError: the library could not open it, although it is there.
    """
    from safetensors import SafetensorError

    with opened_by_library(path):
        try:
            yield
        except FileNotFoundError:
            raise
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is not a readable safetensors file ({error}); it may be truncated: fetch it again"
            ) from error
