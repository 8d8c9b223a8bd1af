"""Splits image folders into three sets that share no source image: fit (and calibrate), select, test."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg_calibration import choose
from vgg_export.core.errors import DataError, HubError
from vgg_export.core.internet import reachable
from vgg_export.core.progress import Progress
from vgg_export.network.provenance import Provenance
from vgg_export.options import DataOptions, DrawOptions
from vgg_runtime.bundle import images
from vgg_runtime.bundle.images import UNREADABLE_SHARE, too_many_unreadable
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.preprocess import open_image
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.text import printable

from . import folders
from .drawn import draw_signs

log = logging.getLogger(__name__)


LEAST_FOR_SPLIT = 12  # with fewer source images all pictures calibrate, and there are no figures


FIT_SHARE, SELECT_SHARE = 0.5, 0.2  # of a folder without parts; the rest is the test set


SELECT_OF_HELD = 1 / 3  # of val/ or test/ where only one of them is given; the rest is the test set


LEAST_TO_DIVIDE = 150  # source images in that folder, so that a hundred are left to test


SELECT_OF_TRAIN = 0.2  # where that folder has fewer; then all of it is the test set


PARTS = ("fit", "select", "test")


BAD_SHOWN = 5


HELD_OF_FIT = 0.2  # held out to measure a repair, where there is no selection set


SIGNS_TRAIN, SIGNS_VAL = 1280, 320  # drawn to fit and to select with, where the demo gets no --data


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture: class index or None, sha256 of the file, and the source image it was made from."""

    path: Path
    label: int | None
    sha256: str
    source: str

    @property
    def short_hashes(self) -> frozenset[str]:
        """Of the picture and its source; they are recorded where it was fitted to or selected on."""
        return frozenset({short_hash(self.sha256), short_hash(self.source)})


@dataclasses.dataclass(frozen=True)
class Splits:
    """Three sets that share no source image. ``note`` says why a set is empty."""

    origin: str
    fit: tuple[Item, ...]
    select: tuple[Item, ...]
    test: tuple[Item, ...]
    note: str | None = None

    def __post_init__(self) -> None:
        seen: dict[str, str] = {}
        for name in PARTS:
            for item in getattr(self, name):
                if seen.setdefault(item.source, name) != name:
                    raise DataError(
                        f"{item.path} was made from a picture that is also in the {seen[item.source]} set;"
                        " the sets must not share pictures"
                    )
        if not self.fit:
            found = f"; it holds {len(seen)} different pictures, of which copies count once" if seen else ""
            raise DataError(
                f"{self.origin} holds no pictures to calibrate with{found}; give more with --data"
            )

    def digest(self, *parts: str) -> str:
        """Hash of the contents of some sets (all by default). Names and places of the files do not matter."""
        content = {
            name: sorted((i.sha256, i.label is None, i.label or 0) for i in getattr(self, name))
            for name in parts or PARTS
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What ``splits.json`` records: not the folder's name, which says nothing of the pictures."""
        return {
            "note": self.note,
            **{name: [_recorded(item) for item in getattr(self, name)] for name in PARTS},
        }

    def fitted(self, before: Sequence[str] = ()) -> list[str]:
        """Short hashes of all pictures and sources that were fitted to or selected on, those in ``before``
        included. No figure may come from them."""
        return sorted(frozenset(before).union(*(i.short_hashes for i in (*self.fit, *self.select))))

    def after_fitting(self, before: Provenance) -> Provenance:
        """The provenance of what was fitted to or selected on these pictures."""
        return dataclasses.replace(before, fitted_on=tuple(self.fitted(before.fitted_on)))

    def without(self, fitted: Sequence[str]) -> "Splits":
        """These sets without the test pictures that the weights were fitted to or selected on before."""
        kept = tuple(i for i in self.test if i.short_hashes.isdisjoint(fitted))
        if dropped := len(self.test) - len(kept):
            log.warning(
                "%s: %d test pictures were used to make these weights and were left out", self.origin, dropped
            )
        return dataclasses.replace(
            self, test=kept, note=self.note if kept or not self.test else "no test pictures remain"
        )


def short_hash(text: str) -> str:
    """The first sixteen hex digits of ``text`` if it is a sha256, else those of its sha256."""
    return text[:16] if len(text) == 64 else hashlib.sha256(text.encode()).hexdigest()[:16]


def _recorded(item: Item) -> dict[str, Any]:
    return {"file": printable(item.path.name, 80), "label": item.label, "sha256": item.sha256}


BUILT_IN = (None, "none", "imagenette")


def ensure_there(options: DataOptions) -> None:
    """Make sure that ``--data`` names a folder or what is built in, before anything takes time.

    Raises:
        DataError: it names neither.
    """
    if options.spec not in BUILT_IN:
        folders.ensure_folder(Path(str(options.spec)))


def class_folders(options: DataOptions) -> tuple[str, ...] | None:
    """Names of the classes of a ``--data`` folder, from its class folders or a table; None for anything
    else."""
    if options.spec in BUILT_IN:
        return None
    return folders.read(Path(str(options.spec))).class_names() or None


def resolve(
    options: DataOptions,
    weights: str,
    labels: Sequence[str],
    ids: Sequence[str] | None,
    cache: Path,
    progress: Progress,
) -> Splits:
    """The pictures that ``--data`` asks for, split.

    Args:
        weights: what kind of weights these are (demo, imagenet, random, file), which decides the default.
        ids: WordNet ids of the classes, None when they are not ImageNet's.
        cache: where drawn pictures are kept.

    Raises:
        DataError: the pictures cannot be used.
        HubError: Imagenette cannot be fetched.
    """
    spec = options.spec
    if spec is None and weights == "demo":
        folder = draw_signs(
            DrawOptions(
                cache / "signs", train=SIGNS_TRAIN, test=options.test_images, seed=options.seed, val=SIGNS_VAL
            ),
            progress,
        )
        return _from_folder(folder, options, labels, ids, progress, "drawn road signs")
    if spec == "imagenette" or (spec is None and ids and weights != "random"):
        try:
            return _from_folder(_imagenette(), options, labels, ids, progress, "Imagenette")
        except HubError as error:
            if spec:
                raise
            log.warning("%s; the sample photographs are used instead", error)
    if spec in (None, "none"):
        found = {"": images.find(sample_photos()).found}
        items = _items(found, {}, "sample photographs", progress)[""]
        note = (
            "the sample photographs are the only pictures, and all of them calibrate; there are no test"
            " pictures, so there are no figures"
        )
        return Splits("sample photographs", tuple(items), (), (), note)
    return _from_folder(Path(str(spec)), options, labels, ids, progress, str(spec))


def unseen(
    options: DataOptions,
    weights: str,
    labels: Sequence[str],
    ids: Sequence[str] | None,
    fitted: frozenset[str],
    cache: Path,
    progress: Progress,
) -> list[Item]:
    """Pictures to evaluate a finished bundle on.

    They are the test part of ``--data``, else its val part, else all pictures of a folder without parts.
    Those whose short hash, or whose source's, is in ``fitted`` are left out.
    """
    if options.spec in BUILT_IN:
        items = list(resolve(options, weights, labels, ids, cache, progress).test)
    else:
        layout = _read(Path(options.spec), labels, ids)
        parts = layout.parts
        chosen = {"": parts.get("test") or parts.get("select") or parts.get("") or []}
        classes = _classes(options.spec, dataclasses.replace(layout, parts=chosen), labels, ids)
        items = _items(chosen, classes, options.spec, progress)[""]
    kept = [i for i in _without_copies(items) if i.short_hashes.isdisjoint(fitted)]
    return choose.limit(kept, [i.source for i in kept], options.test_images, options.seed)


def sample_photos() -> Path:
    """The photographs that ship with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(choose.__file__).parent
    return next(folder for folder in (package / "images", package.parent / "images") if folder.is_dir())


def _read(root: Path, labels: Sequence[str], ids: Sequence[str] | None) -> folders.Layout:
    """The pictures of a folder; what was read and what was left out is logged."""
    layout = folders.read(root, (*labels, *(ids or ())))
    for note in layout.notes:
        log.info("%s", note)
    return layout


def _from_folder(
    root: Path,
    options: DataOptions,
    labels: Sequence[str],
    ids: Sequence[str] | None,
    progress: Progress,
    origin: str,
) -> Splits:
    layout = _read(root, labels, ids)
    classes = _classes(str(root), layout, labels, ids)
    return _split(origin, _items(layout.parts, classes, str(root), progress), options)


def _classes(
    root: str, layout: folders.Layout, labels: Sequence[str], ids: Sequence[str] | None
) -> dict[str, int]:
    """The class index of each class folder and of each label of a table.

    Raises:
        DataError: one of them is no class of the model.
    """
    found = [f for part in layout.parts.values() for f in part if f.folder]
    names = {str(f.folder) for f in found}
    known = {images.normalise(name) for name in (*labels, *(ids or ()))}
    numbers = layout.numbers & names
    by_number: dict[str, int] = {}
    if numbers and not all(images.normalise(number) in known for number in numbers):
        by_number = {number: int(number) for number in numbers}
        if outside := sorted(k for k in by_number.values() if not 0 <= k < len(labels)):
            raise DataError(
                f"{root}: the table gives the number {outside[0]} as a label, the model has {len(labels)}"
                f" classes; expected 0 to {len(labels) - 1}, or the classes' names"
            )
        first = min(by_number.values())
        log.info(
            "%s: the table's numbers are taken as those of the classes (%d: %s)", root, first, labels[first]
        )
    try:
        return images.match_folders(names - by_number.keys(), labels, ids) | by_number
    except RuntimeInputError as error:
        # color/, grayscale/, segmented/ with the class folders in each
        below = {f.path.parent.name for f in found}
        inner = found[0].path.parent.parent
        deeper = f"; the folders in {inner} are classes: give --data {inner}"
        raise DataError(
            f"{root}: {error}, or give the names in order with --labels where the checkpoint is read"
            + (deeper if all(images.normalise(name) in known for name in below) else "")
        ) from error


def _items(
    parts: Mapping[str, Sequence[images.Found]], classes: Mapping[str, int], origin: str, progress: Progress
) -> dict[str, list[Item]]:
    """Hash every picture and make sure that it can be decoded. A few that cannot are left out.

    This is the only check; whoever reads an item's picture later decodes it for its pixels.

    Raises:
        DataError: more than ``UNREADABLE_SHARE`` of the pictures, and more than one, cannot be decoded, or
            none can.
    """
    items: dict[str, list[Item]] = {part: [] for part in parts}
    found = [(part, picture) for part, pictures in parts.items() for picture in pictures]
    bad: dict[Path, str] = {}
    workers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with workers, progress.task(f"reading {origin}", len(found)) as task:
        inspected = workers.map(_inspect, [picture.path for _, picture in found])
        for (part, picture), (digest, complaint) in zip(found, inspected, strict=True):
            if complaint:
                bad[picture.path] = complaint
            else:
                label = classes[picture.folder] if picture.folder else None
                source = choose.source_of(picture.path, digest)
                items[part].append(Item(picture.path, label, digest, source))
            task.advance()
    if bad:
        _judge_bad(bad, len(found), origin)
    return items


def _judge_bad(bad: Mapping[Path, str], count: int, origin: str) -> None:
    """Warn of pictures that cannot be decoded.

    Raises:
        DataError: they are too many.
    """
    complaint, *_ = bad.values()
    others = list(bad)[1:]
    if too_many_unreadable(len(bad), count):
        more = f" ({len(others)} more pictures cannot be read either: {_names(others)})" if others else ""
        raise DataError(
            f"{complaint}{more}; {len(bad)} of {count} pictures are unreadable, up to"
            f" {UNREADABLE_SHARE:.0%} are left out: remove or repair them"
        )
    more = f"; the others are {_names(others)}" if others else ""
    log.warning(
        "%s: %d of %d pictures cannot be read and %s left out: %s%s",
        origin,
        len(bad),
        count,
        "are" if others else "is",
        complaint,
        more,
    )


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(printable(p.name) for p in paths[:BAD_SHOWN]) + (", …" if len(paths) > BAD_SHOWN else "")


def _inspect(path: Path) -> tuple[str, str | None]:
    try:
        digest = choose.content_hash(path)
        open_image(path, for_input(224))  # a large JPEG need not be decoded in full to see that it is whole
    except (RuntimeInputError, OSError) as error:
        return "", str(error)
    return digest, None


def _split(origin: str, parts: dict[str, list[Item]], options: DataOptions) -> Splits:
    """Assign items to the three sets by the hash of their source.

    A source that is in several given parts stays in the first of fit, select and test.
    """
    seed = options.seed
    parts = {part: _without_copies(items) for part, items in parts.items()}
    if "" in parts:
        items = parts[""]
        if len({i.source for i in items}) < LEAST_FOR_SPLIT:
            note = (
                f"{len(items)} pictures are too few to set some apart for a test (at least"
                f" {LEAST_FOR_SPLIT} are needed); all of them calibrate, and there are no figures"
            )
            return Splits(origin, tuple(items), (), (), note)
        fit, select, test = _three_ways(items, seed)
    else:
        fit, select, test = _given_parts(origin, parts, seed)
    used = {i.source for i in fit}
    select = [i for i in select if i.source not in used]
    used |= {i.source for i in select}
    kept = [i for i in test if i.source not in used]
    if dropped := len(test) - len(kept):
        log.warning(
            "%s: %d test pictures are also among the fitted ones and were left out of the test",
            origin,
            dropped,
        )
    kept = choose.limit(kept, [i.source for i in kept], options.test_images, seed)
    return Splits(origin, tuple(fit), tuple(select), tuple(kept), None if kept else "no test pictures remain")


def _given_parts(
    origin: str, parts: dict[str, list[Item]], seed: int
) -> tuple[list[Item], list[Item], list[Item]]:
    """The fit, select and test sets of given folders.

    Where only one of val and test is given, it is divided into both. Train is not divided: the checkpoint was
    probably trained on it and knows its pictures by heart, so that they say little about others. Only where
    the other folder has fewer than ``LEAST_TO_DIVIDE`` source images does a share of train select.
    """
    fit, select, test = parts["train"], parts.get("select", []), parts.get("test", [])
    if select and test:
        return fit, select, test
    held, fitted = test or select, {i.source for i in fit}
    rank_of = _ranks([i for i in held if i.source not in fitted], seed)
    if len(rank_of) < LEAST_TO_DIVIDE:
        log.warning(
            "%s: the selection set is a fifth of train/; weights that were trained on these pictures know"
            " them by heart, so put other pictures into val/",
            origin,
        )
        rank = choose.spread([i.source for i in fit], seed)
        select = [i for i, r in zip(fit, rank, strict=True) if r < SELECT_OF_TRAIN]
        return [i for i, r in zip(fit, rank, strict=True) if r >= SELECT_OF_TRAIN], select, held
    select = [i for i in held if rank_of.get(i.source, 1) < SELECT_OF_HELD]
    # ``_split`` drops and counts the copies of fitted pictures
    return fit, select, [i for i in held if rank_of.get(i.source, 1) >= SELECT_OF_HELD]


def _without_copies(items: Sequence[Item]) -> list[Item]:
    """Each picture once, in the order of the hashes. Copies would inflate n, and names must not matter."""
    once = {item.sha256: item for item in reversed(items)}
    if len(once) < len(items):
        log.warning(
            "%d of %d pictures are copies of others and count once", len(items) - len(once), len(items)
        )
    return [once[digest] for digest in sorted(once)]


def _three_ways(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item], list[Item]]:
    """Fit, select and test sets by rank, so that even a dozen pictures fill all three."""
    rank = _ranks(items, seed)
    fit = [i for i in items if rank[i.source] < FIT_SHARE]
    select = [i for i in items if FIT_SHARE <= rank[i.source] < FIT_SHARE + SELECT_SHARE]
    return fit, select, [i for i in items if rank[i.source] >= FIT_SHARE + SELECT_SHARE]


def _ranks(items: Sequence[Item], seed: int) -> dict[str, float]:
    """The rank of each source image in the order of the hashes, from 0 to below 1."""
    sources = sorted({i.source for i in items}, key=lambda s: choose.spread([s], seed))
    return {source: k / len(sources) for k, source in enumerate(sources)}


def _imagenette() -> Path:
    """torchvision's Imagenette (320 px), downloaded once into the user's cache folder."""
    from torchvision.datasets import Imagenette

    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vgg-export"
    folder = root / "imagenette2-320"
    if not folder.is_dir():
        url = Imagenette._ARCHIVES["320px"][0]
        if why := reachable(url):
            raise HubError(
                f"Imagenette is not in {root} and cannot be fetched from {url} ({why}); use --data FOLDER or"
                " --data none"
            )
        root.mkdir(parents=True, exist_ok=True)
    try:
        Imagenette(str(root), split="val", size="320px", download=not folder.is_dir())
    except (OSError, RuntimeError) as error:
        raise HubError(
            f"Imagenette could not be fetched ({error}); delete {folder} and run again, or use --data FOLDER"
        ) from error
    return folder


def fit_and_held(splits: Splits, images: int, held_images: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Pictures to fit layers on, and held-out ones of other sources.

    The held-out pictures choose the strength of the fit and measure it. They are the selection set's, or a
    share of the fitting set where there is no selection set. There are at most ``images`` and
    ``held_images`` of them.

    Raises:
        DataError: all pictures are of one source.
    """
    fit, held = list(splits.fit), list(splits.select)
    if not held:
        place = choose.spread([i.source for i in fit], seed)
        edge = sorted(place)[-max(1, round(HELD_OF_FIT * len(fit)))]
        fit, held = (
            [i for i, p in zip(fit, place, strict=True) if p < edge],
            [i for i, p in zip(fit, place, strict=True) if p >= edge],
        )
    if not fit:
        raise DataError(
            f"repair needs at least two pictures of different sources, found {len(splits.fit)}; give more"
            " with --data"
        )
    return choose.limit(fit, [i.source for i in fit], images, seed), choose.limit(
        held, [i.source for i in held], held_images, seed
    )
