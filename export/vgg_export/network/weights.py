"""Gets the checkpoint of ``--weights``: ImageNet's through the torch hub cache, a file, the embedded demo, or
random weights."""

import dataclasses
import hashlib
import importlib.resources
import logging
import os
import re
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from vgg_export.core.errors import CheckpointError, HubError
from vgg_export.core.files import explain_write_errors, sha256
from vgg_export.core.internet import reachable
from vgg_export.options import InputOptions, WeightsOptions

from . import chain, modules, specify
from . import checkpoint as checkpoints
from .provenance import Provenance
from .readers import class_names, file_kinds, reading
from .readers.class_names import ClassNames
from .readers.found import Found

log = logging.getLogger(__name__)


# The URL of a mirror, for networks that do not reach download.pytorch.org. The file name must end in the
# first hex digits of its hash.
MIRROR_VARIABLE = "VGG_EXPORT_IMAGENET_URL"


WORDS = ("auto", "imagenet", "demo", "random")  # the words that --weights accepts; anything else is a file


Folders = Callable[[], Sequence[str] | None]


STALL_SECONDS = 30.0


SEED_NOTE = (
    "random weights: the predictions mean nothing, so accuracy and agreement are absent; size,"
    " speed and memory are real"
)


def no_folders() -> None:
    """The class folders where there are none."""


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A checkpoint. ``container``: what it was read from, in words. ``names``: the layers' names in the file,
    by their names here. ``remarks``: sentences about what else is in the file."""

    checkpoint: checkpoints.Checkpoint
    container: str
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def resolve(options: WeightsOptions, folders: Folders = no_folders) -> checkpoints.Checkpoint:
    """The checkpoint that ``--weights`` asks for; as ``find``."""
    found = find(options, folders)
    for remark in found.remarks:
        log.warning("%s: %s", options.spec, remark)
    say_what_is_assumed(found.checkpoint.provenance)
    return found.checkpoint


def find(options: WeightsOptions, folders: Folders = no_folders) -> Resolved:
    """The checkpoint that ``--weights`` asks for, and what it was read from.

    Args:
        folders: gives the class folders of the data. They name the classes where nothing else does, and are
        read
            only then, because the names can decide which folders are classes and which are parts of the data.

    Raises:
        CheckpointError: the file or its class names cannot be used.
        HubError: ImageNet's weights cannot be downloaded or checked.
    """
    names = class_names.read(options.labels) if options.labels else None  # what cannot be used fails first
    match options.spec:
        case "auto":
            checkpoint, container = _auto(), "what was at hand"
        case "imagenet":
            checkpoint, container = _imagenet(), "torchvision's file"
        case "demo":
            checkpoint, container = _demo(None), "the network in this package"
        case "random":
            checkpoint, container = _random(options.seed), "random numbers"
        case _:
            return _file(Path(options.spec), names, folders, options.input)
    checkpoint = _retold(checkpoint, options.input)
    if names:
        checkpoint = _renamed(checkpoint, names)
    return Resolved(checkpoint, container)


def demo_path() -> Path:
    """The weights that ship in the package."""
    return Path(str(importlib.resources.files("vgg_export") / "assets" / "demo_vgg19.safetensors"))


def imagenet_url() -> str:
    from torchvision.models import VGG19_Weights

    return os.environ.get(MIRROR_VARIABLE) or VGG19_Weights.IMAGENET1K_V1.url


def hub_file(url: str) -> Path:
    """The file in torch hub's cache for ``url``."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(url).path).name


def _auto() -> checkpoints.Checkpoint:
    url = imagenet_url()
    why = None if hub_file(url).is_file() else reachable(url)
    if why is None:
        try:
            return _imagenet()
        except HubError as error:
            why = str(error)
    notice = (
        "DEMO WEIGHTS: a small VGG19 trained on drawn road signs stands in for ImageNet's, which could not"
        " be downloaded."
        " For the real one run with --weights imagenet where there is a network, or put"
        f" {hub_file(url).name} into torch's hub cache"
    )
    # the reason varies, so it must not be in the notice, which is hashed
    log.warning("%s (%s). The reason: %s", notice, hub_file(url).parent, why)
    return _demo(notice)


def _imagenet() -> checkpoints.Checkpoint:
    from torchvision.models import VGG19_Weights

    url = imagenet_url()
    if _hash_prefix(hub_file(url)) is None:
        raise HubError(
            f"{url} must end in the first hex digits of its sha256, as vgg19-dcbb9e9d.pth does, so that it"
            " can be checked"
        )
    path = _fetch(url)
    found = specify.specify(reading.read(path), InputOptions())
    labels = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"])
    if found.chain.family != "vgg19" or found.chain.classes != len(labels):
        raise CheckpointError(
            f"{path} is a {found.chain.family} of {found.chain.classes} classes; expected vgg19 of"
            f" {len(labels)}"
        )
    source = Provenance("imagenet", "VGG19 of torchvision, ImageNet-1k", sha256(path), wordnet=True)
    return checkpoints.Checkpoint(found.chain, found.tensors, labels, source)


def _fetch(url: str) -> Path:
    """The file of ``url`` in the hub cache. It is downloaded if it is missing, and its hash is always
    checked."""
    import torch

    path = hub_file(url)
    if not path.is_file():
        log.info("downloading %s to %s", url, path)
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)  # without a timeout torch hub would wait for ever
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path), progress=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise HubError(
                f"{url} could not be downloaded ({error}); use --weights demo, or put the file at {path}"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    prefix = _hash_prefix(path)
    if prefix and not sha256(path).startswith(prefix):
        raise HubError(
            f"{path} does not have the sha256 {prefix}… that its name promises; delete it and run again"
        )
    return path


def _hash_prefix(path: Path) -> str | None:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return match[1] if match else None


def _demo(notice: str | None) -> checkpoints.Checkpoint:
    checkpoint = checkpoints.load(demo_path())
    text = (
        notice
        or "DEMO WEIGHTS: a small VGG19 trained on drawn road signs, not on photographs; for your own use"
        " --weights FILE"
    )
    return dataclasses.replace(checkpoint, provenance=dataclasses.replace(checkpoint.provenance, notice=text))


def _random(seed: int) -> checkpoints.Checkpoint:
    import torch

    torch.manual_seed(seed)
    vgg19 = chain.full_width("vgg19")
    network = modules.build(vgg19)
    for layer in network.children():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            # He's initialisation keeps the scale of the activations through 19 layers; with PyTorch's default
            # they fade to nothing.
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                torch.nn.init.uniform_(layer.bias, -0.05, 0.05)
    source = Provenance("random", f"VGG19 with random weights, seed {seed}", figures_absent=SEED_NOTE)
    labels = tuple(f"class {k}" for k in range(vgg19.classes))
    return checkpoints.Checkpoint(vgg19, dict(network.state_dict()), labels, source)


ALPHABET = "the classes in the order of the alphabet of the folders"


def _file(path: Path, given: ClassNames | None, folders: Folders, told: InputOptions) -> Resolved:
    if is_own(path):
        checkpoint = _retold(checkpoints.load(path), told)
        if given:
            checkpoint = _renamed(checkpoint, given)
        return Resolved(checkpoint, "a checkpoint of vgg-export")
    found = reading.read(path)
    try:
        made = specify.specify(found, told)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    checkpoints.ensure_finite(path, made.tensors)
    what = f"{made.chain.family} of {made.chain.classes} classes from {path.name}"
    source = Provenance("file", what, sha256(path), origins=made.origins, assumed=made.assumed)
    names, source = _named(path, made.chain.classes, given, found, folders, source)
    checkpoint = checkpoints.Checkpoint(made.chain, made.tensors, names, source)
    return Resolved(checkpoint, found.container, found.network.names, found.remarks)


def _retold(checkpoint: checkpoints.Checkpoint, told: InputOptions) -> checkpoints.Checkpoint:
    """A checkpoint in our own format with what was told about its input and its output."""
    chain, source = specify.retold(checkpoint.chain, told), checkpoint.provenance
    if chain.input.px != checkpoint.chain.input.px:
        source = source.then(f"taken to {chain.input.px} px")
    return dataclasses.replace(checkpoint, chain=chain, provenance=source)


def is_own(path: Path) -> bool:
    """Whether a file is a checkpoint in our own format."""
    return (
        path.is_file()
        and file_kinds.recognise(path).readable == file_kinds.SAFETENSORS
        and checkpoints.is_checkpoint(path)
    )


def say_what_is_assumed(source: Provenance) -> None:
    """Log what is assumed, at every run: another normalisation, for example, would make every figure
    wrong."""
    if source.assumed:
        log.info("assumed, since the file does not say: %s", "; ".join(source.assumed))


def _named(
    path: Path,
    classes: int,
    given: ClassNames | None,
    content: Found,
    folders: Folders,
    source: Provenance,
) -> tuple[tuple[str, ...], Provenance]:
    """The class names, and ``source`` with their origin. They are those of the file, of ``--labels``, of the
    folders in alphabetical order, ImageNet's, or numbers.

    Raises:
        CheckpointError: their number is wrong, or two sources contradict each other.
    """
    inside, fault = content.names, content.names_fault
    if inside and len(inside.names) != classes:
        fault = f"{inside.where} has {len(inside.names)} class names, the checkpoint has {classes} classes"
        inside = None
    if given:
        _ensure_count(given, classes)
        if inside:
            _ensure_same(given, inside)
        elif fault:
            log.warning("%s; the names of --labels are taken", fault)
    elif fault:
        raise CheckpointError(
            f"{fault}; correct it, or give the names in the order of the outputs with --labels"
        )
    if chosen := given or inside:
        log.info("class names: %s", chosen.in_words())
        return chosen.names, dataclasses.replace(source, names_from="checkpoint" if inside else "labels")
    found = sorted(folders() or ())
    if len(found) == classes:
        log.warning(
            "class names: %s. The checkpoint does not say in which order its classes are; the alphabet of"
            " the folders is assumed, as"
            " torchvision and Keras number them. If it was trained in another order, give the names in"
            " that order with --labels",
            class_names.shown(found),
        )
        return tuple(found), dataclasses.replace(source, assumed=(*source.assumed, ALPHABET))
    if classes == 1000:
        from torchvision.models import VGG19_Weights

        names = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"])
        return names, dataclasses.replace(source, wordnet=True)
    if found:
        raise CheckpointError(
            f"{path} has {classes} classes, the data has {len(found)} class folders"
            f" ({class_names.shown(found, 20)}); give one class folder"
            " per class, or the checkpoint's class names in order with --labels FILE"
        )
    log.warning("the classes have no names; give them with --labels FILE (one per line, or JSON)")
    return tuple(f"class {k}" for k in range(classes)), source


def _renamed(checkpoint: checkpoints.Checkpoint, given: ClassNames) -> checkpoints.Checkpoint:
    """The checkpoint with the names of ``--labels``.

    Raises:
        CheckpointError: the number of names is wrong, or the original file names the classes otherwise.
    """
    _ensure_count(given, checkpoint.chain.classes)
    source = checkpoint.provenance
    if source.names_from == "checkpoint":
        _ensure_same(given, ClassNames(checkpoint.labels, "the checkpoint itself"))
    assumed = tuple(text for text in source.assumed if text != ALPHABET)
    return dataclasses.replace(
        checkpoint, labels=given.names, provenance=dataclasses.replace(source, assumed=assumed)
    )


def _ensure_same(given: ClassNames, inside: ClassNames) -> None:
    if not class_names.same(inside.names, given.names):
        raise CheckpointError(
            f"--labels contradicts the checkpoint, {class_names.difference(given, inside)}:"
            f" {given.in_words()}, but {inside.in_words()};"
            " leave --labels out if the checkpoint is right, else correct the names in it or save its"
            " tensors without them"
        )


def _ensure_count(given: ClassNames, classes: int) -> None:
    if len(given.names) != classes:
        raise CheckpointError(
            f"{given.where} has {len(given.names)} class names, the checkpoint has {classes} classes;"
            " expected one name for each, in the"
            " order of the classes"
        )


def fingerprint(checkpoint: checkpoints.Checkpoint) -> str:
    """The hash of chain, labels and tensors."""
    digest = hashlib.sha256(repr((checkpoint.chain, checkpoint.labels)).encode())
    for name in sorted(checkpoint.tensors):
        digest.update(name.encode() + checkpoint.tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
