"""Where a checkpoint comes from: ImageNet through the torch hub cache, a file, the embedded demo, or random."""

import hashlib
import importlib.resources
import logging
import os
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import model
from .errors import CheckpointError, HubError
from .options import WeightsOptions
from .state_dicts import read_file, to_plan_and_tensors
from .storage import explain_write_errors, sha256

log = logging.getLogger(__name__)

# For networks that reach a mirror but not download.pytorch.org; the file name must end in the first hex digits of its hash.
MIRROR_VARIABLE = "VGG_EXPORT_IMAGENET_URL"
DECIDE_SECONDS = 4.0
STALL_SECONDS = 30.0
SEED_NOTE = "random weights: the predictions mean nothing, so accuracy and agreement are absent; size, speed and memory are real"


def resolve(options: WeightsOptions, folders: Sequence[str] | None = None) -> model.Checkpoint:
    """The checkpoint that ``--weights`` asks for.

    Args:
        folders: class folders of the data, used as label names where nothing else gives them.

    Raises:
        CheckpointError, HubError: with what to do.
    """
    match options.spec:
        case "auto":
            checkpoint = _auto()
        case "imagenet":
            checkpoint = _imagenet()
        case "demo":
            checkpoint = _demo(None)
        case "random":
            checkpoint = _random(options.seed)
        case _:
            return _file(Path(options.spec), options.labels, folders)
    if options.labels:
        labels = _read_labels(options.labels, checkpoint.plan.classes)
        return model.Checkpoint(checkpoint.plan, checkpoint.tensors, labels, checkpoint.source)
    return checkpoint


def demo_path() -> Path:
    """The weights that ship in the package."""
    return Path(str(importlib.resources.files("vgg_export") / "assets" / "demo_vgg19.safetensors"))


def imagenet_url() -> str:
    from torchvision.models import VGG19_Weights

    return os.environ.get(MIRROR_VARIABLE) or VGG19_Weights.IMAGENET1K_V1.url


def hub_file(url: str) -> Path:
    """Where torch hub keeps what it downloads from ``url``."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(url).path).name


def wordnet_ids() -> tuple[str, ...]:
    """ImageNet's 1000 WordNet ids in the order of the classes."""
    text = importlib.resources.files("vgg_export").joinpath("assets", "imagenet_wnids.txt").read_text(encoding="ascii")
    return tuple(text.split())


def reachable(url: str, seconds: float = DECIDE_SECONDS) -> str | None:
    """None when ``url`` answers within ``seconds``, else why not. Name look-ups that hang are not waited for."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
                answer.append(None)
        except (OSError, ValueError) as error:
            answer.append(str(getattr(error, "reason", error)) or type(error).__name__)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"no answer within {seconds:g} s"


def _auto() -> model.Checkpoint:
    url = imagenet_url()
    why = None if hub_file(url).is_file() else reachable(url)
    if why is None:
        try:
            return _imagenet()
        except HubError as error:
            why = str(error)
    notice = (
        "DEMO WEIGHTS: a small VGG19 trained on drawn road signs stands in for ImageNet's, which could not be downloaded."
        f" For the real one run with --weights imagenet where there is a network, or put {hub_file(url).name} into torch's hub cache"
    )
    log.warning("%s (%s). The reason: %s", notice, hub_file(url).parent, why)  # the reason varies, so it stays out of what is hashed
    return _demo(notice)


def _imagenet() -> model.Checkpoint:
    from torchvision.models import VGG19_Weights

    url = imagenet_url()
    if _hash_prefix(hub_file(url)) is None:
        raise HubError(f"{url} must end in the first hex digits of its sha256, as vgg19-dcbb9e9d.pth does, so that it can be checked")
    path = _fetch(url)
    plan, tensors = to_plan_and_tensors(read_file(path))
    labels = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"])
    if plan.family != "vgg19" or plan.classes != len(labels):
        raise CheckpointError(f"{path} is a {plan.family} of {plan.classes} classes; expected vgg19 of {len(labels)}")
    return model.Checkpoint(
        plan, tensors, labels, {"weights": "imagenet", "what": "VGG19 of torchvision, ImageNet-1k", "sha256": sha256(path), "wordnet": True}
    )


def _fetch(url: str) -> Path:
    """The file of ``url`` in the hub cache, downloaded if need be, its hash checked either way."""
    import torch

    path = hub_file(url)
    if not path.is_file():
        log.info("downloading %s to %s", url, path)
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)  # torch hub itself would wait for ever
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=_hash_prefix(path), progress=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise HubError(f"{url} could not be downloaded ({error}); use --weights demo, or put the file at {path}") from error
        finally:
            socket.setdefaulttimeout(before)
    prefix = _hash_prefix(path)
    if prefix and not sha256(path).startswith(prefix):
        raise HubError(f"{path} does not have the sha256 {prefix}… that its name promises; delete it and run again")
    return path


def _hash_prefix(path: Path) -> str | None:
    match = re.search(r"-([0-9a-f]{8,})\.", path.name)
    return match[1] if match else None


def _demo(notice: str | None) -> model.Checkpoint:
    checkpoint = model.load(demo_path())
    text = notice or "DEMO WEIGHTS: a small VGG19 trained on drawn road signs, not on photographs; for your own use --weights FILE"
    return model.Checkpoint(checkpoint.plan, checkpoint.tensors, checkpoint.labels, checkpoint.source | {"notice": text})


def _random(seed: int) -> model.Checkpoint:
    import torch

    torch.manual_seed(seed)
    plan = model.full_width("vgg19")
    network = model.build(plan)
    for layer in network.children():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            # He's initialisation keeps the activations' scale through 19 layers; PyTorch's default lets them fade to nothing.
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                torch.nn.init.uniform_(layer.bias, -0.05, 0.05)
    source = {"weights": "random", "what": f"VGG19 with random weights, seed {seed}", "figures_absent": SEED_NOTE}
    labels = tuple(f"class {k}" for k in range(plan.classes))
    return model.Checkpoint(plan, dict(network.state_dict()), labels, source)


def _file(path: Path, labels: Path | None, folders: Sequence[str] | None) -> model.Checkpoint:
    if path.suffix == ".safetensors" and path.is_file() and model.is_checkpoint(path):
        checkpoint = model.load(path)
        names = _read_labels(labels, checkpoint.plan.classes) if labels else checkpoint.labels
        return model.Checkpoint(checkpoint.plan, checkpoint.tensors, names, checkpoint.source)
    plan, tensors = to_plan_and_tensors(read_file(path))
    source: dict[str, Any] = {
        "weights": "file",
        "what": f"{plan.family} of {plan.classes} classes from {path.name}",
        "sha256": sha256(path),
    }
    if labels:
        names = _read_labels(labels, plan.classes)
    elif folders and len(folders) == plan.classes:
        names = tuple(sorted(folders))
    elif plan.classes == 1000:
        from torchvision.models import VGG19_Weights

        names, source["wordnet"] = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"]), True
    elif folders:
        shown = ", ".join(sorted(folders)[:20])
        raise CheckpointError(
            f"the checkpoint has {plan.classes} classes, the data has {len(folders)} class folders ({shown}); expected as many,"
            " or the checkpoint's class names in order with --labels FILE"
        )
    else:
        log.warning("the classes have no names; give them with --labels FILE (one a line)")
        names = tuple(f"class {k}" for k in range(plan.classes))
    return model.Checkpoint(plan, tensors, names, source)


def _read_labels(path: Path, classes: int) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as UTF-8 text ({error}); expected one class name a line") from error
    if len(lines) != classes:
        raise CheckpointError(
            f"{path} has {len(lines)} class names, the checkpoint has {classes} classes;"
            " expected one name a line, in the order of the classes"
        )
    return lines


def fingerprint(checkpoint: model.Checkpoint) -> str:
    """Hash of plan, labels and tensors."""
    digest = hashlib.sha256(repr((checkpoint.plan, checkpoint.labels)).encode())
    for name in sorted(checkpoint.tensors):
        digest.update(name.encode() + checkpoint.tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
