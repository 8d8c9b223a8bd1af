"""Puts one variant of a bundle into a folder of its own, with the board's packages if that is asked for."""

import logging
from pathlib import Path

from vgg_export.core.files import work_folder
from vgg_export.core.progress import Progress
from vgg_export.options import ShipOptions
from vgg_runtime.board.targets import here
from vgg_runtime.bundle import builds
from vgg_runtime.bundle.bill import LOCKED
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.classify import choice
from vgg_runtime.classify.ship import Shipped, ship

from . import wheels
from .board import Board

log = logging.getLogger(__name__)

GLIBC = (2, 36)  # of Raspberry Pi OS Bookworm, the oldest with Python 3.11


def run(options: ShipOptions, progress: Progress) -> Shipped:
    """Write the folder or zip file.

    Raises:
        BundleError: there is no such bundle, variant or target, or nothing is recommended.
        RuntimeInputError: the output exists already, or cannot be written.
        DeployError: no fitting packages were found.
    """
    bundle = Bundle.read(options.bundle)
    target = builds.target_named(options.target) if options.target else here()
    bundle = bundle.using(builds.for_core(bundle.manifest, target))
    chosen = (
        bundle.manifest.variant(options.variant)
        if options.variant
        else choice.recommended(bundle.manifest, target)
    )
    if chosen.build.targets and target.name not in chosen.build.targets:
        log.warning(
            "the bundle has no %s for %s; what is shipped was made for %s, and may be slow there;"
            " 'all --target %s' makes one",
            chosen.id,
            target.name,
            ", ".join(chosen.build.targets),
            target.name,
        )
    extra: dict[str, Path] = {}
    if options.wheels:
        board = Board(target.machine, "", "", (*options.version, 0), GLIBC, venv=True, rsync=False)
        cache = work_folder(options.bundle) / "wheels"
        paths = wheels.fetch(board, [options.bundle / LOCKED], cache, progress)
        extra = {f"wheels/{path.name}": path for path in paths}
    return ship(bundle, chosen, options.output, extra)
