"""Image folders -> three disjoint sets by source image: fit (and calibrate), select, test."""

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
from vgg_export.options import DataOptions
from vgg_runtime.bundle import images
from vgg_runtime.bundle.preprocess import open_image
from vgg_runtime.errors import RuntimeInputError
from vgg_runtime.text import printable

from .drawn import DrawOptions, draw_signs

log = logging.getLogger(__name__)


LEAST_FOR_SPLIT = 12  # below this all pictures are used to calibrate, and no figure is claimed


FIT_SHARE, SELECT_SHARE = 0.5, 0.2  # of a folder without a test set of its own; the rest is the test set


SELECT_OF_HELD = 1 / 3  # of the pictures outside train/, where only one such folder is given


LEAST_TO_DIVIDE = 150  # of those: a hundred are left to test


SELECT_OF_TRAIN = 0.2  # where there are fewer


PARTS = ("fit", "select", "test")


# How folders of parts are called, in any case: a word, a longer form of it, and then perhaps what tells it
# from others (test1, train_set).
_BEGINNINGS = {"train": "train", "val": "select", "test": "test", "eval": "eval"}


_BEGINS_LIKE_ONE = re.compile("|".join(_BEGINNINGS))


# seg_train, x-test
_WORD_WITHIN = re.compile(r"[ _.-](train|val|test|eval)(?=(?:ing|id|idation|uation)?[0-9]*(?:$|[ _.-]))")


_PART_NAME = re.compile(
    r"(train(ing)?|val(id(ation)?)?|test(ing)?|eval(uation)?)(["
    r" _.-]?(s|sets?|data|datasets?|images?|imgs?|pictures?|[0-9]+))*"
)


HELD_OF_FIT = 0.2  # for repair, where there is no selection set


SIGNS_TRAIN, SIGNS_VAL = 1280, 320  # drawn to fit and to select with, where the demo brings no pictures


@dataclasses.dataclass(frozen=True)
class Item:
    """A picture: class index or None, sha256 of the file, and the source image it was made from."""

    path: Path
    label: int | None
    sha256: str
    source: str

    @property
    def short_hashes(self) -> frozenset[str]:
        """Of the picture and of its source: what is recorded of it where it was fitted to or selected on."""
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
        """Hash of the contents of some sets (all by default), whatever the files are called and wherever they
        lie."""
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
        """Short hashes of every picture and source that something was fitted to or selected on, ``before``
        this, too; no figure may come from them."""
        return sorted(frozenset(before).union(*(i.short_hashes for i in (*self.fit, *self.select))))

    def after_fitting(self, before: Provenance) -> Provenance:
        """The provenance of what was fitted to or selected on these pictures."""
        return dataclasses.replace(before, fitted_on=tuple(self.fitted(before.fitted_on)))

    def without(self, fitted: Sequence[str]) -> "Splits":
        """Without test pictures that these weights were fitted to or selected on before."""
        kept = tuple(i for i in self.test if i.short_hashes.isdisjoint(fitted))
        if dropped := len(self.test) - len(kept):
            log.warning(
                "%s: %d test pictures were used to make these weights and were left out", self.origin, dropped
            )
        return dataclasses.replace(
            self, test=kept, note=self.note if kept or not self.test else "no test pictures remain"
        )


def short_hash(text: str) -> str:
    """Sixteen hex digits: of a sha256 its first ones, of anything else those of its own hash."""
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
        DataError, HubError: with what was found and what to do.
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
            "only the sample photographs were there, and all of them calibrate: no test images, so no figures"
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
    """Pictures to evaluate a finished bundle on: the test part of ``--data`` (its val part, or all of a
    folder without parts), without those whose own or whose source's short hash is in ``fitted``."""
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
    """Pictures of a folder by part: train, select and test as far as there are such folders, else all under
    ``""``.

    Args:
        labels: the model's class names where they are known; a class may well be called "train" or "test".

    Raises:
        DataError: no such folder, no pictures, or folders that could be parts as well as classes; then it
            names both readings.
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
    """Which folder is which part; none where they are classes."""
    alike = [folder for folder in folders if _part_of_name(folder.name)]
    plain = [folder for folder in alike if _PART_NAME.fullmatch(folder.name.lower())]
    if not alike or (len(alike) < len(folders) and not plain):  # none, or a "valley" among landscapes
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
        f" or {shown} as classes. For parts, let only train, val and test stand there; for classes, put"
        " these folders into a new one"
        " called train" + (", or name the classes with --labels" if len(parts) < len(folders) else "")
    )


def _by_part(folders: Sequence[Path]) -> dict[str, Path]:
    """The folder of each part; one for evaluation takes the place that is free: the test's, or else the
    selection's."""
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        parts.setdefault(str(_part_of_name(folder.name)), []).append(folder)
    if held := parts.pop("eval", None):
        parts.setdefault("select" if "test" in parts and "select" not in parts else "test", []).extend(held)
    for part, found in parts.items():
        if len(found) > 1:
            raise DataError(
                f"{', '.join(folder.name for folder in found)} in {found[0].parent} are all called like"
                f" the part {part!r}; expected one"
                " folder for each part: put their pictures together or move the others away; if they are"
                " classes, put them into a new"
                " folder called train"
            )
    return {part: _down(found[0]) for part, found in parts.items()}


def _part_of_name(name: str) -> str | None:
    """Which part a folder is called like."""
    found = _BEGINS_LIKE_ONE.match(name.lower()) or _WORD_WITHIN.search(name.lower())
    return _BEGINNINGS[found[found.lastindex or 0]] if found else None


def _down(part: Path) -> Path:
    """The folder below that is called like the part again, where it is all that is there:
    seg_train/seg_train/CLASS."""
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
        DataError: the first picture that cannot, and how many more.
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
    """Assign items to the three sets by the hash of their source; duplicates across given parts stay with the
    first."""
    seed = options.seed
    parts = {part: _without_copies(items) for part, items in parts.items()}
    if "" in parts:
        items = parts[""]
        if len({i.source for i in items}) < LEAST_FOR_SPLIT:
            note = (
                f"{len(items)} pictures are too few to set some apart for a test (at least"
                f" {LEAST_FOR_SPLIT});"
                " all of them calibrate, and there are no figures"
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
    """The sets of given folders. Of two, train and another one, the other one is divided: a checkpoint was
    likely trained on train, knows those pictures by heart, and says little about others there."""
    fit, select, test = parts["train"], parts.get("select", []), parts.get("test", [])
    if select and test:
        return fit, select, test
    held, fitted = test or select, {i.source for i in fit}
    rank_of = _ranks([i for i in held if i.source not in fitted], seed)
    if len(rank_of) < LEAST_TO_DIVIDE:
        log.warning(
            "%s: a fifth of train/ selects; weights that were trained on these pictures know them by"
            " heart, so put others into val/",
            origin,
        )
        rank = choose.spread([i.source for i in fit], seed)
        select = [i for i, r in zip(fit, rank, strict=True) if r < SELECT_OF_TRAIN]
        return [i for i, r in zip(fit, rank, strict=True) if r >= SELECT_OF_TRAIN], select, held
    select = [i for i in held if rank_of.get(i.source, 1) < SELECT_OF_HELD]
    # copies of fitted ones are dropped and counted
    return fit, select, [i for i in held if rank_of.get(i.source, 1) >= SELECT_OF_HELD]


def _without_copies(items: Sequence[Item]) -> list[Item]:
    """Each picture once, in the order of their hashes: copies would inflate n, and names decide nothing."""
    once = {item.sha256: item for item in reversed(items)}
    if len(once) < len(items):
        log.warning(
            "%d of %d pictures are copies of others and count once", len(items) - len(once), len(items)
        )
    return [once[digest] for digest in sorted(once)]


def _three_ways(items: Sequence[Item], seed: int) -> tuple[list[Item], list[Item], list[Item]]:
    """By rank, so that even a dozen pictures fill all three sets."""
    rank = _ranks(items, seed)
    fit = [i for i in items if rank[i.source] < FIT_SHARE]
    select = [i for i in items if FIT_SHARE <= rank[i.source] < FIT_SHARE + SELECT_SHARE]
    return fit, select, [i for i in items if rank[i.source] >= FIT_SHARE + SELECT_SHARE]


def _ranks(items: Sequence[Item], seed: int) -> dict[str, float]:
    """From 0 to below 1 for each source image, in the order of their hashes."""
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
                f"Imagenette is neither in {root} nor to be had from {url} ({why}); use --data FOLDER or"
                " --data none"
            )
        root.mkdir(parents=True, exist_ok=True)
    try:
        Imagenette(str(root), split="val", size="320px", download=not folder.is_dir())
    except (OSError, RuntimeError) as error:
        raise HubError(
            f"Imagenette could not be had ({error}); delete {folder} and run again, or use --data FOLDER"
        ) from error
    return folder


def fit_and_held(splits: Splits, images: int, held_images: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Pictures to fit layers on, and others, of other sources, that choose the strength of the fit and
    measure; the second are the selection set's, or a share of the fitting set where there is none.

    Raises:
        DataError: there are not two sources.
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
