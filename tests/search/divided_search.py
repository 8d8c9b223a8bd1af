"""Run under torchrun or alone: a search on a narrow network, with ranks in smaller multiples than a command
takes. Arguments: the checkpoint, the pictures, ``--output`` and the bundle."""

import sys
from pathlib import Path

from vgg_export import pipeline, terminal
from vgg_export.core import processes
from vgg_export.options import (
    Budget,
    DataOptions,
    DistilOptions,
    FactoriseOptions,
    FinetuneOptions,
    PruneOptions,
    RecipeOptions,
    RunOptions,
    SearchOptions,
    WeightsOptions,
    default_targets,
)
from vgg_export.search import points


def command() -> int:
    weights, pictures, _, output = sys.argv[1:]
    points.TIMING_S = 0.02
    terminal.show_what_matters()
    options = RecipeOptions(
        weights=WeightsOptions(weights),
        data=DataOptions(pictures, calibration_images=8),
        prune=PruneOptions(ratio=0.5, images=16, multiple=4),
        finetune=FinetuneOptions(epochs=0),
        factorise=FactoriseOptions(images=16, multiple=4),
        distil=DistilOptions("classifier"),
        search=SearchOptions(effort="quick"),
        budget=Budget(max_drop=100.0),
        scaled_px=96,
        variants=("pruned", "compact", "compact-scaled"),
        targets=default_targets()[:1],
    )
    pipeline.run(options, RunOptions(Path(output)))
    return 0


if __name__ == "__main__":
    sys.exit(processes.led(command))
