"""Files of torch.save: whole archives, the pickle inside one, the format before, safetensors."""

import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import torch
import torch.fx  # before the time of a seed is measured
from fuzz.fuzzing import Target
from safetensors.torch import save

from vgg_export.core.errors import CheckpointError
from vgg_export.network import weights
from vgg_export.options import WeightsOptions

_INSIDE = b"\x80"  # a pickle; it is put into an archive


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2)),
        *(torch.nn.Flatten(), torch.nn.Linear(64, 3)),
    )


def seeds() -> list[bytes]:
    whole, state = network(), network().state_dict()
    named = {"state_dict": state, "class_to_idx": {"a": 0, "b": 1, "c": 2}, "epoch": 3}
    archives = [_saved(one) for one in (whole, state, named)]
    old = [_saved(one, _use_new_zipfile_serialization=False) for one in (state, named)]
    pickles = [zipfile.ZipFile(io.BytesIO(one)).read("archive/data.pkl") for one in archives]
    return [*archives, *old, *pickles, save(dict(state)), pickle.dumps(named["class_to_idx"])]


def _saved(value: object, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "checkpoint.pth"
        path.write_bytes(data)
        try:
            weights.find(WeightsOptions(str(path)))
        except CheckpointError:
            if not data.startswith(_INSIDE):
                raise
            _in_archive(path, data)
            weights.find(WeightsOptions(str(path)))


def _in_archive(path: Path, pickled: bytes) -> None:
    """A file of torch.save with this pickle and the numbers of the seeds."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for k, tensor in enumerate(network().state_dict().values()):
            archive.writestr(f"archive/data/{k}", tensor.numpy().tobytes())
        archive.writestr("archive/version", "3")


TARGET = Target(seeds, feed, (CheckpointError,))
