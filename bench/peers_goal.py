"""What contenders that make the network smaller have to meet: the arithmetic of a variant of the bundle, and
the pictures and the time that the variant had."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vgg_export.core.errors import DataError
from vgg_export.options import FinetuneOptions
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.bundle.outputs import SOFTMAX

Sidecars = dict[str, dict[str, Any]]  # by the sha256 of the file beside them


@dataclasses.dataclass(frozen=True)
class Goal:
    """``variant``: the one with the same arithmetic and input. ``minutes``: how long to fine-tune.
    ``images``: the pictures to fit on, at most."""

    variant: Variant
    minutes: float
    images: int


def goal(manifest: Manifest, work: Path, variant: Variant | None, minutes: float | None) -> Goal:
    """What to meet.

    Args:
        work: the folder that 'vgg-export all' leaves beside the bundle, with the sidecars.
        variant: None: the one with the fewest multiply-accumulates.
        minutes: None: those that the variant took.

    Raises:
        DataError: the network is no classifier of one class each, or it is not known how long the variant
            took.
    """
    if manifest.output != SOFTMAX:
        raise DataError(
            "these tools' own fine-tuning is cross-entropy of one class per picture; found a network with"
            f" {manifest.output} outputs"
        )
    wanted = variant or min(manifest.variants, key=lambda one: one.macs)
    spent = history(work, wanted)
    if minutes is None and spent is None:
        raise DataError(
            f"it is not known how long the variant {wanted.id} took, because {work.name} has no sidecar of"
            " it; give --finetune-minutes N"
        )
    images = spent[1] if spent else FinetuneOptions.images
    return Goal(wanted, minutes if minutes is not None else spent[0] if spent else 0.0, images)


def history(work: Path, variant: Variant) -> tuple[float, int] | None:
    """The minutes that all steps to a variant took, and the pictures it was distilled on, by the sidecars of
    its model and of everything that was made from. Where several models are alike, the one that took longest
    counts. None: there is no sidecar of such a model."""
    known = _sidecars(work)
    found = []
    for sidecar in known.values():
        model = sidecar.get("measured", {}).get("model")
        if not isinstance(model, dict):  # a point of a search names its model by its hash
            continue
        alike = (model.get("macs"), model.get("parameters"), model.get("precision"))
        if alike == (variant.macs, variant.parameters, variant.precision):
            line = list(_ancestors(sidecar, known))
            given = (one["options"] for one in line if one["stage"] == "finetune")
            images = next((options["images"] for options in given if "images" in options), None)
            minutes = sum(float(one["seconds"]) for one in line) / 60
            found.append((minutes, images or FinetuneOptions.images))
    return max(found, default=None)


def _ancestors(sidecar: dict[str, Any], known: Sidecars) -> Iterator[dict[str, Any]]:
    """A sidecar and those of all files that its file was made from, each once."""
    waiting, seen = [sidecar], set()
    while waiting:
        one = waiting.pop()
        if (digest := one["output"]["sha256"]) not in seen:
            seen.add(digest)
            yield one
            waiting += [known[source] for source in one["inputs"].values() if source in known]


def _sidecars(work: Path) -> Sidecars:
    """All readable sidecars below a folder."""
    found: Sidecars = {}
    for path in sorted(work.rglob("*.json")):
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(sidecar, dict) and {"stage", "output", "inputs", "seconds", "options"} <= set(sidecar):
            found[sidecar["output"]["sha256"]] = sidecar
    return found
