"""Keras files: the configuration inside a .keras archive, and whole HDF5 files."""

import io
import json
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz.fuzzing import Target, changed_bytes, changed_json

from vgg_export.core.errors import CheckpointError
from vgg_export.network import weights
from vgg_export.options import WeightsOptions

WEIGHTS = {"conv2d": ((3, 3, 3, 4), (4,)), "dense": ((64, 3), (3,))}


def configuration() -> dict[str, Any]:
    shape = [None, 8, 8, 3]
    layers = (
        ("InputLayer", {"batch_shape": shape, "name": "input"}),
        ("Rescaling", {"name": "rescaling", "scale": 1 / 255, "offset": 0.0}),
        (
            "Conv2D",
            {
                "name": "conv2d", "filters": 4, "kernel_size": [3, 3], "strides": [1, 1], "padding": "same",
                "data_format": "channels_last", "dilation_rate": [1, 1], "groups": 1, "activation": "relu",
                "use_bias": True,
            },
        ),
        ("MaxPooling2D", {"name": "pool", "pool_size": [2, 2], "strides": [2, 2], "padding": "valid"}),
        ("Flatten", {"name": "flatten", "data_format": "channels_last"}),
        ("Dense", {"name": "dense", "units": 3, "activation": "softmax", "use_bias": True}),
    )  # fmt: skip
    made = [
        {"module": "keras.layers", "class_name": kind, "config": config, "registered_name": None}
        for kind, config in layers
    ]
    return {
        "module": "keras",
        "class_name": "Sequential",
        "config": {"name": "sequential", "layers": made, "build_input_shape": shape},
    }


def hdf5(model: str | None) -> bytes:
    """Weights as Keras 3 writes them in an archive, or with a configuration as Keras 2 does."""
    numbers, file = np.random.default_rng(0), io.BytesIO()
    with h5py.File(file, "w") as store:
        if model is not None:
            store.attrs["model_config"], store.attrs["keras_version"] = model, "2.15.0"
        root = "layers" if model is None else "model_weights"
        for name, shapes in WEIGHTS.items():
            inside = f"{name}/vars" if model is None else f"{name}/{name}"
            group, names = store.require_group(f"{root}/{inside}"), ("kernel:0", "bias:0")
            for k, shape in enumerate(shapes):
                group[str(k) if model is None else names[k]] = numbers.normal(size=shape).astype(np.float32)
            if model is not None:
                store[f"{root}/{name}"].attrs["weight_names"] = [f"{name}/{one}" for one in names]
        if model is not None:
            store[root].attrs["layer_names"] = list(WEIGHTS)
    return file.getvalue()


def seeds() -> list[bytes]:
    model = json.dumps(configuration())
    return [model.encode(), hdf5(model), archive(model.encode())]


def archive(model: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("config.json", model)
        made.writestr("metadata.json", json.dumps({"keras_version": "3.5.0"}))
        made.writestr("model.weights.h5", hdf5(None))
    return file.getvalue()


def change(data: bytes, chance: random.Random) -> bytes:
    """A configuration is changed as a document, everything else as bytes."""
    return changed_json(data, chance) if data.startswith(b"{") else changed_bytes(data, chance)


def feed(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.keras"
        path.write_bytes(archive(data) if data.startswith(b"{") else data)
        weights.find(WeightsOptions(str(path)))


TARGET = Target(seeds, feed, (CheckpointError,), change)
