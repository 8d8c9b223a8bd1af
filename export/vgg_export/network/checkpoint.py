"""A checkpoint: the network's plan, its tensors and where they came from, in one safetensors file."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg_export.core.errors import CheckpointError
from vgg_export.core.files import atomic_file

from .chain import Plan, expected_shapes
from .modules import build

if TYPE_CHECKING:
    import torch
    from torch import nn


FORMAT = "vgg-export-checkpoint"


FORMAT_VERSION = 2  # 2: plans with factorised layers


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A plan, its float32 tensors (``conv1_1.weight`` [n, c, 3, 3], ``fc1.weight`` [n, c*grid*grid],
    ``*.bias`` [n]; the two parts of a factorised layer are ``conv3_1_reduce`` and ``conv3_1_expand``), the
    class names and where the weights came from."""

    plan: Plan
    tensors: "dict[str, torch.Tensor]"
    labels: tuple[str, ...]
    source: dict[str, Any]

    def __post_init__(self) -> None:
        expected = expected_shapes(self.plan)
        found = {name: tuple(t.shape) for name, t in self.tensors.items()}
        if missing := sorted(expected.keys() - found.keys()):
            raise CheckpointError(
                f"the checkpoint lacks {missing[0]} {expected[missing[0]]} and {len(missing) - 1} more"
                " tensors of its plan"
            )
        for name, shape in found.items():
            if name not in expected:
                raise CheckpointError(
                    f"the checkpoint holds {name} {shape}, which a {self.plan.family} does not have"
                )
            if shape != expected[name]:
                raise CheckpointError(f"{name} is {shape}, but the plan says {expected[name]}")
        if len(self.labels) != self.plan.classes:
            raise CheckpointError(
                f"{len(self.labels)} labels for {self.plan.classes} classes; they must be as many"
            )

    @property
    def has_knowledge(self) -> bool:
        """False for random weights: there is nothing to repair or to recover, and no figure of accuracy means
        anything."""
        return not self.source.get("figures_absent")

    def model(self) -> "nn.Sequential":
        """The network in evaluation mode, with its own copy of the tensors."""
        model = build(self.plan)
        model.load_state_dict(self.tensors)
        return model.eval()


def save(checkpoint: Checkpoint, path: Path, *, half: bool = False) -> None:
    """Write plan, labels and source as metadata of a safetensors file; ``half`` stores the tensors as
    float16."""
    from safetensors.torch import save as to_bytes

    header = {"plan": checkpoint.plan.to_json(), "labels": checkpoint.labels, "source": checkpoint.source}
    metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "checkpoint": json.dumps(header)}
    tensors = {name: (t.half() if half else t.float()).contiguous() for name, t in checkpoint.tensors.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        header_bytes, rest = _in_order(to_bytes(tensors, metadata))
        file.write(header_bytes)
        file.write(rest)


def _in_order(content: bytes) -> tuple[bytes, memoryview]:
    """A safetensors file's header, its metadata in order, and the rest: the library writes metadata in the
    order of a hash table, so that the same checkpoint would have another hash each time and everything made
    from it would be made again."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text, memoryview(content)[end:]


def is_checkpoint(path: Path) -> bool:
    """Whether a safetensors file carries our plan in its metadata."""
    return _metadata(path).get("format") == FORMAT


def load(path: Path) -> Checkpoint:
    """Read what ``save`` wrote; the tensors come back as float32.

    Raises:
        CheckpointError: not a safetensors file, truncated, not ours, newer than this program, or tensors that
            do not fit the plan.
    """
    from safetensors.torch import load_file

    metadata = _metadata(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a {FORMAT}; give it to --weights instead"
        )
    if not metadata.get("version", "").isdigit() or int(metadata["version"]) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {metadata.get('version')}; this program reads up to"
            f" {FORMAT_VERSION}: update vgg-export"
        )
    try:
        header = json.loads(metadata["checkpoint"])
        tensors = {name: t.float() for name, t in load_file(path).items()}
        labels, source = tuple(map(str, header["labels"])), dict(header["source"])
        plan = Plan.from_json(header["plan"])
    except CheckpointError:
        raise
    except Exception as error:  # a damaged header fails in any way there is
        raise CheckpointError(
            f"{path} is damaged ({type(error).__name__}: {error}); make it again"
        ) from error
    return Checkpoint(plan, tensors, labels, {"weights": "file", "what": plan.family} | source)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({error}); it may be truncated: fetch it again"
        ) from error
