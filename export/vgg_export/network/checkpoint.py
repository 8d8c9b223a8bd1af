"""Reads and writes checkpoints: a network's chain, tensors and provenance in one safetensors file."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core.errors import CheckpointError, OpeningError
from vgg_export.core.files import atomic_file, opened_by_library

from .chain import Chain
from .modules import build
from .provenance import Provenance
from .safetensors_files import reading

if TYPE_CHECKING:
    import torch
    from torch import nn


FORMAT = "vgg-export-checkpoint"


FORMAT_VERSION = 3  # 2: a plan of VGGs alone, which is read too; 3: any chain, with its input


@dataclasses.dataclass(frozen=True)
class Header:
    """The content of a checkpoint file without its tensors."""

    chain: Chain
    labels: tuple[str, ...]
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A chain, its float32 tensors (``conv1_1.weight`` [n, c, height, width], ``fc1.weight`` [n, inputs],
    ``*.bias`` [n]; the two parts of a factorised layer are ``conv3_1_reduce`` and ``conv3_1_expand``), the
    class names and the provenance of the weights."""

    chain: Chain
    tensors: "dict[str, torch.Tensor]"
    labels: tuple[str, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        ensure_fit(self.chain, self.labels, {name: tuple(t.shape) for name, t in self.tensors.items()})

    @property
    def has_knowledge(self) -> bool:
        """False for random weights; see ``Provenance``."""
        return self.provenance.has_knowledge

    def model(self) -> "nn.Sequential":
        """The network in evaluation mode, with its own copy of the tensors."""
        model = build(self.chain)
        model.load_state_dict(self.tensors)
        return model.eval()


def ensure_fit(chain: Chain, labels: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that labels and the shapes of tensors are those of a chain.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape, or the number of labels is wrong.
    """
    expected = chain.tensor_shapes()
    if missing := sorted(expected.keys() - shapes.keys()):
        raise CheckpointError(
            f"the checkpoint lacks {missing[0]} {expected[missing[0]]} and {len(missing) - 1} more"
            " tensors of its network"
        )
    for name, shape in shapes.items():
        if name not in expected:
            raise CheckpointError(
                f"the checkpoint holds {name} {shape}, which this {chain.family} does not have"
            )
        if shape != expected[name]:
            raise CheckpointError(f"{name} is {shape}, but the layers say {expected[name]}")
    if len(labels) != chain.classes:
        raise CheckpointError(
            f"found {len(labels)} labels for {chain.classes} classes; expected one per class"
        )


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write a safetensors file with chain, labels and provenance as its metadata. ``half`` stores the tensors
    as float16."""
    from safetensors.torch import save as to_bytes

    header = {
        "chain": checkpoint.chain.to_json(),
        "labels": checkpoint.labels,
        "source": checkpoint.provenance.to_json(),
    }
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "checkpoint": json.dumps(header)}
    tensors = {name: (t.half() if half else t.float()).contiguous() for name, t in checkpoint.tensors.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        header_bytes, rest = _in_order(to_bytes(tensors, metadata))
        file.write(header_bytes)
        file.write(rest)


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """The header of a safetensors file with sorted metadata, and the rest of the file. The library writes
    metadata in the order of a hash table. Unsorted, the same checkpoint would get another hash each time, and
    everything made from it would be made again."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def is_checkpoint(path: Path) -> bool:
    """Whether a safetensors file is a checkpoint in our own format."""
    return _read(path)[0].get("format") == FORMAT


def read_header(path: Path) -> Header:
    """Read what ``save`` wrote without the tensors; only their shapes are checked.

    Raises:
        CheckpointError: as ``load``.
    """
    metadata, shapes = _read(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a {FORMAT}; commands that take --weights can read it"
        )
    if not metadata.get("version", "").isdigit() or int(metadata["version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('version')}; this program reads up to"
            f" {FORMAT_VERSION}: update vgg-export"
        )
    try:
        header = json.loads(metadata["checkpoint"])
        chain = Chain.from_json(header["chain" if "chain" in header else "plan"])
        # a file without these fields is read too
        source = {"weights": "file", "what": chain.family} | dict(header["source"])
        found = Header(chain, tuple(map(str, header["labels"])), Provenance.from_json(source))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # a damaged header can fail in any way
        raise _damaged(path, error) from error
    ensure_fit(found.chain, found.labels, shapes)
    return found


def load(path: Path) -> Checkpoint:
    """Read what ``save`` wrote; the tensors come back as float32.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint in our own format, or newer than this
            program, or its tensors do not fit the chain.
    """
    from safetensors.torch import load_file

    header = read_header(path)
    try:
        with opened_by_library(path):
            tensors = {name: t.float() for name, t in load_file(path).items()}
    except (OSError, OpeningError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(path, error) from error
    ensure_finite(path, tensors)
    return Checkpoint(header.chain, tensors, header.labels, header.provenance)


def ensure_finite(path: Path, tensors: Mapping[str, "torch.Tensor"]) -> None:
    """Make sure that all numbers of a file are finite.

    Raises:
        CheckpointError: one is not; training that diverged leaves such files.
    """
    import torch

    wrong = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in tensors.items()}
    if bad := [name for name, count in wrong.items() if count]:
        more = f", and of {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{path}: {wrong[bad[0]]:,} of {tensors[bad[0]].numel():,} numbers of {bad[0]} are not finite"
            f" (NaN or infinity){more}: its training diverged, or it is damaged; take a checkpoint of an"
            " earlier epoch"
        )


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); make it again")


def _read(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The metadata of a safetensors file and the shapes of its tensors, in order."""
    from safetensors import safe_open

    try:
        with reading(path), safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), shapes
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
