"""Drawn road signs as labelled image folders."""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

from vgg_export.core.errors import DataError
from vgg_export.core.files import write_json
from vgg_export.core.progress import Progress
from vgg_export.options import DrawOptions

from . import signs

log = logging.getLogger(__name__)

# above every seed the demo was trained on
SIGNS_SEEDS = {"train": 20_000_000, "val": 30_000_000, "test": 10_000_000}


def draw_signs(options: DrawOptions, progress: Progress) -> Path:
    """Draw the folders unless they are there as asked; returns ``output``.

    Raises:
        DataError: something else wrote the folder; it is never replaced.
    """
    import PIL

    record = options.output / "drawn.json"
    drawn_by = hashlib.sha256(Path(str(signs.__file__)).read_bytes()).hexdigest()
    wanted = {
        "train": options.train,
        "val": options.val,
        "test": options.test,
        "size_px": options.size_px,
        "seed": options.seed,
        "drawn_by": drawn_by,
        "pillow": PIL.__version__,
    }
    if record.is_file() and json.loads(record.read_text()) == wanted:
        return options.output
    if options.output.exists() and not record.is_file() and any(options.output.iterdir()):
        raise DataError(
            f"{options.output} is not empty and was not drawn by this program; name another folder"
        )
    beside = options.output.with_name(f".{options.output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        _draw_all(beside, options, progress)
        write_json(beside / "drawn.json", wanted)
        shutil.rmtree(options.output, ignore_errors=True)
        beside.rename(options.output)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return options.output


def _draw_all(root: Path, options: DrawOptions, progress: Progress) -> None:
    jobs = []
    for part, base in SIGNS_SEEDS.items():
        count = int(getattr(options, part))
        for name in signs.CLASSES if count else ():
            (root / part / name).mkdir(parents=True)
        for k in range(count):
            name, seed = signs.CLASSES[k % len(signs.CLASSES)], base + options.seed * 100_000_000 + k
            jobs.append((root / part / name / f"{seed}.jpg", name, seed, options.size_px))
    with (
        concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool,
        progress.task("drawing road signs", len(jobs)) as task,
    ):
        for _ in pool.map(_draw_file, jobs, chunksize=32):
            task.advance()


def _draw_file(job: tuple[Path, str, int, int]) -> None:
    path, name, seed, size_px = job
    signs.draw(name, seed, size_px).save(path, quality=92)
