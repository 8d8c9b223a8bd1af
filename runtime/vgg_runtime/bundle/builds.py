"""Chooses the build of each variant that runs here, and whether it runs fast or lean with memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vgg_runtime.board.targets import TARGETS, Target, here, nearest
from vgg_runtime.errors import BundleError

from .manifest import Build, Manifest, SessionSettings, Variant
from .opened import Bundle
from .session import exact

FAST, LEAN, AUTO = "fast", "lean", "auto"


MEMORY_MODES = (AUTO, FAST, LEAN)


# While a fast session packs its weights, it holds them twice, beside Python and onnxruntime (measured: 1.9
# times an fp32 file and 60 MB at most). If it takes more than this share of the available memory, other
# programs are pushed out.
PACKED_TWICE, ENGINE_BYTES, ROOM = 2.0, 60_000_000, 0.7


def for_core(bundle: Manifest, target: Target, chosen: Mapping[str, str] | None = None) -> Manifest:
    """The manifest with every variant using the build for this core.

    ``chosen`` maps variants to the ids of builds that were measured to be the fastest here.
    """
    variants = []
    for variant in bundle.variants:
        measured = next((b for b in variant.builds if b.id == (chosen or {}).get(variant.id)), None)
        best = nearest(target, [build.targets for build in variant.builds])
        variants.append(variant.using(measured or variant.builds[best]))
    return dataclasses.replace(bundle, variants=tuple(variants))


def target_named(name: str) -> Target:
    """A target by its name.

    Raises:
        BundleError: there is none of that name.
    """
    if name not in TARGETS:
        raise BundleError(f"there is no target {name!r}; known are {', '.join(TARGETS)}")
    return TARGETS[name]


def mode(build: Build, wanted: str, available_bytes: int | None) -> str:
    """``FAST`` or ``LEAN``: as wanted; for ``AUTO``, fast if that leaves room in the available memory."""
    if build.sessions[FAST] == build.sessions[LEAN]:
        return FAST  # there is no leaner session
    if wanted != AUTO:
        return wanted
    needed = ENGINE_BYTES + PACKED_TWICE * build.bytes
    return LEAN if available_bytes is not None and needed > ROOM * available_bytes else FAST


def session_here(build: Build, memory_mode: str) -> SessionSettings:
    """The settings that a build is run with on this machine."""
    return exact(build.sessions[memory_mode], here(), build.targets)


def request(bundle: Bundle, variant: Variant, memory_mode: str) -> dict[str, Any]:
    """The request that tells a child process which model to run, and how."""
    return {
        "check": variant.build.id,
        "model": str(bundle.folder / variant.build.model.path),
        "expected": str(bundle.folder / bundle.manifest.expected.path),
        "session": dataclasses.asdict(session_here(variant.build, memory_mode)),
        "output": bundle.manifest.output,
    }
