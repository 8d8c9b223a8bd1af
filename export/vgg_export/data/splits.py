"""Splits image folders into three sets that share no source image: fit (and calibrate), select, test."""

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_calibration import choose
from vgg_export.core.errors import DataError, HubError
from vgg_export.core.internet import reachable
from vgg_export.core.progress import Progress
from vgg_export.network.provenance import Provenance
from vgg_export.options import DataOptions, DrawOptions
from vgg_runtime.bundle import images
from vgg_runtime.bundle.preprocess import open_image
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.text import printable

from .drawn import draw_signs

log = logging.getLogger(__name__)


LEAST_FOR_SPLIT = 12  # with fewer source images all pictures calibrate, and there are no figures


FIT_SHARE, SELECT_SHARE = 0.5, 0.2  # of a folder without parts; the rest is the test set


SELECT_OF_HELD = 1 / 3  # of val/ or test/ where only one of them is given; the rest is the test set


LEAST_TO_DIVIDE = 150  # source images in that folder, so that a hundred are left to test


SELECT_OF_TRAIN = 0.2  # where that folder has fewer; then all of it is the test set


PARTS = ("fit", "select", "test")


# Names of part folders, in any case: one of these words or a longer form of it, then perhaps something that
# tells similar folders apart (test1, train_set).
_BEGINNINGS = {"train": "train", "val": "select", "test": "test", "eval": "eval"}


_BEGINS_LIKE_ONE = re.compile("|".join(_BEGINNINGS))


# seg_train, x-test
_WORD_WITHIN = re.compile(r"[ _.-](train|val|test|eval)(?=(?:ing|id|idation|uation)?[0-9]*(?:$|[ _.-]))")


_PART_NAME = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|eval(uation)?)(["
    r" _.-]?(s|sets?|data|datasets?|images?|imgs?|pictures?|[0-9]+))*"
)


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
            raise DataError(f"{self.origin} holds no pictures to calibrate with")

    def digest(self, *parts: str) -> str:
        """Hash of the contents of some sets (all by default). Names and places of the files do not matter."""
        content = {
            name: sorted((i.sha256, i.label is None, i.label or 0) for i in getattr(self, name))
            for name in parts or PARTS
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
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


def class_folders(options: DataOptions) -> tuple[str, ...] | None:
    """Names of the class folders of a ``--data`` folder, None for anything else."""
    if options.spec in (None, "none", "imagenette"):
        return None
    parts = _parts(Path(str(options.spec)))
    return tuple(sorted({f.folder for found in parts.values() for f in found if f.folder})) or None


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
        items = _items(images.find(sample_photos()), None, "sample photographs", progress)
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
    if options.spec is None or options.spec in ("none", "imagenette"):
        items = list(resolve(options, weights, labels, ids, cache, progress).test)
    else:
        parts = _parts(Path(options.spec), labels)
        chosen = parts.get("test") or parts.get("select") or parts.get("") or []
        items = _items(chosen, _classes(options.spec, {"": chosen}, labels, ids), options.spec, progress)
    kept = [i for i in _without_copies(items) if i.short_hashes.isdisjoint(fitted)]
    return choose.limit(kept, [i.source for i in kept], options.test_images, options.seed)


def sample_photos() -> Path:
    """The photographs that ship with the package: beside it in a checkout, inside it in a wheel."""
    package = Path(choose.__file__).parent
    return next(folder for folder in (package / "images", package.parent / "images") if folder.is_dir())


def _parts(root: Path, labels: Sequence[str] = ()) -> dict[str, list[images.Found]]:
    """Pictures of a folder by part: train, select and test where there is a train folder, else all under
    ``""``.

    Args:
        labels: the model's class names where they are known; a class may well be called "train" or "test".

    Raises:
        DataError: there is no such folder, it holds no pictures, or its folders could be parts as well as
            classes; then the message names both readings.
    """
    if not root.is_dir():
        raise DataError(
            f"there is no folder {root}; --data takes imagenette, none, or a folder of pictures or class"
            " folders"
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))
    parts = _part_folders(folders, labels)
    try:
        if not parts:
            return {"": images.find(root)}
        if "train" not in parts:
            return {"": [found for folder in parts.values() for found in images.find(folder)]}
        return {part: images.find(folder) for part, folder in parts.items()}
    except RuntimeInputError as error:
        raise DataError(str(error)) from error


def _part_folders(folders: Sequence[Path], labels: Sequence[str]) -> dict[str, Path]:
    """The folder of each part; empty where the folders are classes."""
    alike = [folder for folder in folders if _part_of_name(folder.name)]
    plain = [folder for folder in alike if _PART_NAME.fullmatch(folder.name.lower())]
    # no name of a part, or only one such as "valley" among landscapes
    if not alike or (len(alike) < len(folders) and not plain):
        return {}
    known = {images.normalise(label) for label in labels}
    classes = all(images.normalise(folder.name) in known for folder in folders)
    hold_folders = any(_inside(folder) for folder in plain or alike)
    if len(alike) < len(folders):
        if classes:
            return {}
        raise DataError(_beside(folders, plain) if hold_folders else _two_readings(folders, plain))
    if not hold_folders and (classes or len(plain) < len(alike)):
        raise DataError(_two_readings(folders, alike))
    return _by_part(alike)


def _inside(folder: Path) -> bool:
    """Whether there are class folders in it."""
    return any(entry.is_dir() and not entry.name.startswith((".", "__")) for entry in folder.iterdir())


def _beside(folders: Sequence[Path], parts: Sequence[Path]) -> str:
    others = [folder.name for folder in folders if folder not in parts]
    return (
        f"{folders[0].parent} holds {', '.join(p.name for p in parts)} beside {', '.join(others[:5])};"
        " expected either train/, val/ and test/ with class folders in them, or class folders alone"
    )


def _two_readings(folders: Sequence[Path], parts: Sequence[Path]) -> str:
    shown = ", ".join(folder.name for folder in folders[:8])
    return (
        f"{folders[0].parent} can be read in two ways: {', '.join(p.name for p in parts)} as parts of the"
        " data with unlabelled pictures,"
        f" or {shown} as classes. For parts, leave only train, val and test there; for classes, put"
        " these folders into a new one called train"
        + (", or name the classes with --labels" if len(parts) < len(folders) else "")
    )


def _by_part(folders: Sequence[Path]) -> dict[str, Path]:
    """The folder of each part. One for evaluation becomes the test part; the selection part, if only that is
    missing.

    Raises:
        DataError: several folders stand for the same part.
    """
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        parts.setdefault(str(_part_of_name(folder.name)), []).append(folder)
    if held := parts.pop("eval", None):
        parts.setdefault("select" if "test" in parts and "select" not in parts else "test", []).extend(held)
    for part, found in parts.items():
        if len(found) > 1:
            raise DataError(
                f"{', '.join(folder.name for folder in found)} in {found[0].parent} all stand for the part"
                f" {part!r}; expected one folder for each part: put their pictures together or move the"
                " others away; if they are classes, put them into a new folder called train"
            )
    return {part: _down(found[0]) for part, found in parts.items()}


def _part_of_name(name: str) -> str | None:
    """The part that a folder's name stands for, None when it stands for none."""
    found = _BEGINS_LIKE_ONE.match(name.lower()) or _WORD_WITHIN.search(name.lower())
    return _BEGINNINGS[found[found.lastindex or 0]] if found else None


def _down(part: Path) -> Path:
    """The inner folder of a part where it is the only entry and its name stands for the same part
    (seg_train/seg_train/CLASS), else ``part`` itself."""
    inside = [entry for entry in part.iterdir() if not entry.name.startswith((".", "__"))]
    if (
        len(inside) == 1
        and inside[0].is_dir()
        and _part_of_name(inside[0].name) == _part_of_name(part.name)
        and _inside(inside[0])
    ):
        return inside[0]
    return part


def _from_folder(
    root: Path,
    options: DataOptions,
    labels: Sequence[str],
    ids: Sequence[str] | None,
    progress: Progress,
    origin: str,
) -> Splits:
    parts = _parts(root, labels)
    classes = _classes(str(root), parts, labels, ids)
    sets = {part: _items(found, classes, str(root), progress) for part, found in parts.items()}
    return _split(origin, sets, options)


def _classes(
    root: str, parts: dict[str, list[images.Found]], labels: Sequence[str], ids: Sequence[str] | None
) -> dict[str, int]:
    try:
        return images.match_folders(
            {f.folder for found in parts.values() for f in found if f.folder}, labels, ids
        )
    except RuntimeInputError as error:
        raise DataError(
            f"{root}: {error}, or give the names in order with --labels where the checkpoint is read"
        ) from error


def _items(
    found: Sequence[images.Found], classes: dict[str, int] | None, origin: str, progress: Progress
) -> list[Item]:
    """Hash every picture and make sure that it can be decoded.

    Raises:
        DataError: a picture cannot; the message names the first and counts the others.
    """
    items, bad = [], []
    workers = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with workers, progress.task(f"reading {origin}", len(found)) as task:
        for picture, (digest, complaint) in zip(
            found, workers.map(_inspect, [f.path for f in found]), strict=True
        ):
            if complaint:
                bad.append(complaint)
            label = classes[picture.folder] if classes and picture.folder else None
            items.append(Item(picture.path, label, digest, choose.source_of(picture.path, digest)))
            task.advance()
    if bad:
        raise DataError(
            bad[0]
            + (f" ({len(bad) - 1} more pictures cannot be read either)" if len(bad) > 1 else "")
            + "; remove or repair them"
        )
    return items


def _inspect(path: Path) -> tuple[str, str | None]:
    try:
        digest = choose.content_hash(path)
        open_image(path)
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
