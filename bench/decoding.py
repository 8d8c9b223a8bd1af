"""Shows what decoding a large JPEG at a part of its size is worth, and what it costs: the time from a file to
the answer with it and without, in turn, and how often both ways say the same.

    python bench/decoding.py --bundle artifacts --variant compact-scaled --data photos/ --limit 500

The exact way decodes every pixel; the other is the one that calibration, evaluation and the board use.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vgg_runtime.board import device
from vgg_runtime.bundle import builds, images, outputs
from vgg_runtime.bundle.metrics import wilson_interval
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.bundle.preprocess import framed, open_image, scaled
from vgg_runtime.bundle.session import Model
from vgg_runtime.measure import tuning

WARM_UP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="decoding.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("artifacts"), metavar="DIR")
    parser.add_argument("--variant", default="compact-scaled", metavar="NAME")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of pictures")
    parser.add_argument("--limit", type=int, default=500, metavar="N", help="pictures (default: 500)")
    wanted = parser.parse_args(arguments)
    bundle = Bundle.read(wanted.bundle)
    variant = tuning.for_here(bundle.manifest, None).variant(wanted.variant)
    spec, build = variant.preprocessing, variant.build
    threads = device.usable_cores()
    model = Model(wanted.bundle / build.model.path, builds.session_here(build, builds.FAST), threads)
    paths = images.look(wanted.data).all_pictures[: wanted.limit]
    times: dict[str, list[float]] = {"exact": [], "fast": []}
    said: dict[str, list[int]] = {"exact": [], "fast": []}
    apart = []
    for number, path in enumerate(paths):
        frames = {}
        for way in ("exact", "fast") if number % 2 else ("fast", "exact"):
            start = time.perf_counter()
            frames[way] = framed(open_image(path, spec if way == "fast" else None), spec)
            logits = model(scaled(frames[way], spec)[None])
            times[way].append((time.perf_counter() - start) * 1e3)
            said[way].append(int(outputs.class_logits(logits, bundle.manifest.output)[0].argmax()))
        apart.append(float(np.abs(frames["fast"].astype(float) - frames["exact"]).mean()))
    same = sum(a == b for a, b in zip(said["fast"], said["exact"], strict=True))
    low, high = wilson_interval(same, len(paths))
    exact, fast = (statistics.median(times[way][WARM_UP:] or times[way]) for way in ("exact", "fast"))
    print(f"{len(paths)} pictures of {wanted.data}, {variant.id} at {spec.px} px, {threads} threads")
    print(f"file to answer: exact {exact:.1f} ms, in part {fast:.1f} ms, {exact / fast:.2f} times as fast")
    print(
        f"same answer: {same} of {len(paths)}, {100 * same / len(paths):.1f} % ({100 * low:.1f} to"
        f" {100 * high:.1f}); pixels apart by {statistics.fmean(apart):.2f} of 255 on average"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
