"""Keras files as Keras itself writes them, compared with what Keras computes; and files that must not be
followed, unpacked or run."""

import importlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import assert_same, pictures

from vgg_export.core.errors import CheckpointError
from vgg_export.network.chain import AdaptiveAvgPool, AdaptiveMaxPool, Conv, Flatten, Linear
from vgg_export.network.provenance import ASSUMED, CONVENTION, FILE
from vgg_export.network.readers import keras_files, keras_store
from vgg_runtime.bundle.input_spec import InputSpec, normalized

os.environ.setdefault("KERAS_BACKEND", "torch")
keras, h5py = importlib.import_module("keras"), importlib.import_module("h5py")
L, M = keras.layers, keras.Sequential

RAW, UNIT, CAFFE = "raw", "unit", "caffe"  # what the user does to the pixels before the model
PREPARED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    RAW: lambda x: x,
    UNIT: lambda x: x / 255,
    CAFFE: lambda x: np.asarray(keras.applications.vgg16.preprocess_input(x.copy())),
}
MODELS: dict[str, tuple[Callable[[], Any], str]] = {}


def model(prepared: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        MODELS[make.__name__] = (make, prepared)
        return make

    return register


def vgg_base(px: int, name: str = "vgg16") -> Any:
    """Keras' own VGG, an eighth as wide: names of layers as in keras.applications."""
    x = inputs = L.Input((px, px, 3))
    for stage, (width, count) in enumerate(((8, 2), (16, 2), (32, 3)), 1):
        for k in range(count):
            x = L.Conv2D(width, 3, activation="relu", padding="same", name=f"block{stage}_conv{k + 1}")(x)
        x = L.MaxPooling2D(2, 2, name=f"block{stage}_pool")(x)
    return keras.Model(inputs, x, name=name)


def applied(
    px: int | None, *layers: Any, before: Callable[[Any], Any] | None = None, channels: int = 3
) -> Any:
    """A functional model."""
    x = inputs = L.Input((px, px, channels))
    x = before(x) if before else x
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


@model(CAFFE)
def nested_global_pool() -> Any:
    base = vgg_base(40)
    base.trainable = False
    return M([base, L.GlobalAveragePooling2D(), L.Dense(16, "relu"), L.Dropout(0.5), L.Dense(5, "softmax")])


@model(CAFFE)
def nested_flatten_sigmoid() -> Any:
    return M([L.Input((36, 36, 3)), vgg_base(36), L.Flatten(), L.Dense(16, "relu"), L.Dense(1, "sigmoid")])


@model(RAW)
def preprocess_input_of_caffe_inside() -> Any:
    augment = M([L.RandomFlip("horizontal"), L.RandomRotation(0.1), L.RandomZoom(0.1)])
    inside = keras.applications.vgg16.preprocess_input
    return applied(32, vgg_base(32), L.Flatten(), L.Dense(4), before=lambda x: inside(augment(x)))


@model(RAW)
def preprocess_input_of_tf_inside() -> Any:
    inside = keras.applications.mobilenet_v2.preprocess_input
    return applied(32, vgg_base(32), L.GlobalMaxPooling2D(), L.Dense(4), before=inside)


@model(RAW)
def preprocess_input_of_torch_inside() -> Any:
    inside = keras.applications.densenet.preprocess_input
    return applied(32, vgg_base(32), L.GlobalAveragePooling2D(), L.Dense(4), before=inside)


@model(RAW)
def rescaling_and_unusual_heads() -> Any:
    return M(
        [
            L.Input((32, 32, 3)),
            L.Rescaling(1 / 127.5, offset=-1),
            L.RandomContrast(0.2),
            L.Conv2D(8, 5, strides=2, padding="same", use_bias=False),
            L.BatchNormalization(scale=False),
            L.LeakyReLU(negative_slope=0.2),
            L.MaxPooling2D(3, 2, padding="same"),
            L.Conv2D(8, (3, 1), activation="swish"),
            L.BatchNormalization(center=False, epsilon=1e-2),
            L.ZeroPadding2D(((1, 0), (0, 2))),
            L.Conv2D(8, 2, activation=L.ELU(0.5)),
            L.SpatialDropout2D(0.1),
            L.AveragePooling2D(2, padding="same"),
            L.Flatten(),
            L.BatchNormalization(),
            L.Dense(9, activation="tanh", kernel_regularizer="l2"),
            L.BatchNormalization(),
            L.GaussianNoise(0.1),
            L.Dense(6),
            L.ReLU(6.0),
            L.Dense(3),
            L.Softmax(),
        ]
    )


@model(RAW)
def adapted_normalization() -> Any:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(1).uniform(0, 200, (8, 28, 28, 1)).astype(np.float32))
    x = [layer, L.Conv2D(6, 3, activation="gelu"), L.MaxPooling2D(), L.Flatten(), L.Dense(7)]
    return M([L.Input((28, 28, 1)), *x])


@model(RAW)
def given_normalization() -> Any:
    layer = L.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 2000.0, 4000.0])
    return applied(24, layer, L.Conv2D(6, 3), L.Activation("relu"), L.Flatten(), L.Dense(2, "softmax"))


@model(UNIT)
def never_adapted_normalization() -> Any:
    return M([L.Input((24, 24, 3)), L.Normalization(), L.Conv2D(6, 3), L.Flatten(), L.Dense(2)])


@model(UNIT)
def one_channel() -> Any:
    return M([L.Input((28, 28, 1)), L.Conv2D(6, 3, activation="relu"), L.Flatten(), L.Dense(10, "softmax")])


@model(UNIT)
def models_inside_models() -> Any:
    inner = M([L.Input((24, 24, 3)), L.Conv2D(4, 3, activation="relu"), L.BatchNormalization()], name="inner")
    middle = M([inner, L.Conv2D(5, 3), L.BatchNormalization()], name="middle")
    return M([middle, L.Conv2D(6, 3, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(3)])


@model(UNIT)
def several_labels() -> Any:
    return M([L.Input((24, 24, 3)), L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(6, "sigmoid")])


@model(UNIT)
def convolutions_alone() -> Any:
    head = [L.Dense(8, "relu"), L.GlobalAveragePooling2D(keepdims=True), L.Conv2D(3, 1), L.Flatten()]
    return applied(24, L.Conv2D(4, 3), *head, L.Activation("softmax"))


@model(UNIT)
def mixed_precision() -> Any:
    """Computed in float32 here, since half precision differs by more than the tolerance."""
    policy = keras.DTypePolicy("mixed_float16")
    made = M([L.Input((24, 24, 3)), L.Conv2D(4, 3, dtype=policy), L.Flatten(), L.Dense(2, dtype=policy)])
    for layer in made.layers:
        layer.dtype_policy = policy
    return made


def filled(name: str) -> Any:
    """A model with weights that keep its outputs apart."""
    keras.utils.set_random_seed(0)
    made, rng = MODELS[name][0](), np.random.default_rng(2)
    for weight in made.weights:
        last = weight.path.rpartition("/")[2]
        if last in ("beta", "bias", "moving_mean"):
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
        elif last in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return made


def said(made: Any, prepared: str, px: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures, and what Keras says of them behind the user's own preprocessing."""
    seen = pictures(channels, px)
    x = PREPARED[prepared](seen.transpose(0, 2, 3, 1)).astype(np.float32)
    return seen, np.asarray(made.predict(x, verbose=0))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_says_what_keras_says(name: str, suffix: str, tmp_path: Path) -> None:
    made, prepared = filled(name), MODELS[name][1]
    made.save(tmp_path / f"model{suffix}")
    if name == "mixed_precision":
        for layer in made.layers:
            layer.dtype_policy = keras.DTypePolicy("float32")
    found = keras_files.read(tmp_path / f"model{suffix}")
    px, channels = made.input_shape[1], made.input_shape[3]
    assert (found.input.px, found.input.channels, found.input.resize) == (px, channels, "squash")
    assert found.origins.px == FILE
    assert found.origins.resize == CONVENTION
    assert found.origins.normalize == (FILE if prepared == RAW else ASSUMED)
    assert found.container.startswith("a Keras model (")
    assert_same(found, *said(made, prepared, px, channels))


def test_channels_turned_by_a_slice(tmp_path: Path) -> None:
    """Keras with PyTorch writes this slice but does not run it, so that the model gets turned pictures."""
    mean = np.array([103.9, 116.8, 123.7], np.float32)
    layers = [L.Conv2D(4, 3), L.Flatten(), L.Dense(3)]
    applied(32, *layers, before=lambda x: x[..., ::-1] - mean).save(tmp_path / "model.keras")
    found = keras_files.read(tmp_path / "model.keras")
    assert found.input.bgr
    assert np.allclose(np.multiply(found.input.mean, 255), mean)
    seen = pictures(3, 32)
    x = (seen[:, ::-1].transpose(0, 2, 3, 1) - mean).astype(np.float32)
    assert_same(found, seen, np.asarray(applied(32, *layers).predict(x, verbose=0)))


def old_layer(kind: str, name: str, source: Any = None, **config: Any) -> dict[str, Any]:
    """A layer of a functional model as tf.keras writes it."""
    inbound = [] if source is None else [[[source, 0, 0, {}]]] if isinstance(source, str) else [source]
    return {"class_name": kind, "config": {"name": name, **config}, "name": name, "inbound_nodes": inbound}


def old_file(path: Path, model_config: Any, weights: dict[str, dict[str, np.ndarray]]) -> Path:
    """A file of model.save as tf.keras writes it: weights by layer, then by name."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(model_config)
        for layer, named in weights.items():
            group = file.create_group(f"model_weights/{layer}")
            group.attrs["weight_names"] = [name.encode() for name in named]
            for name, numbers in named.items():
                group[name] = numbers
    return path


def test_a_file_of_tf_keras(tmp_path: Path) -> None:
    """The operations of ``preprocess_input`` are layers there, and names of weights end in :0."""
    kernel, dense = (
        np.random.default_rng(k).normal(0, 0.05, s) for k, s in enumerate([(3, 3, 3, 4), (4, 2)])
    )
    bias = np.array([0.1, -0.2, 0.3, 0.4])
    mean = [-103.939, -116.779, -123.68]
    turn = [{"class_name": "__ellipsis__"}, {"start": None, "stop": None, "step": -1}]
    inner = {
        "name": "vgg16",
        "layers": [
            old_layer("InputLayer", "input_1", batch_input_shape=[None, 20, 20, 3]),
            old_layer("Conv2D", "conv", "input_1", strides=[2, 2], padding="same", activation="relu"),
        ],
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["conv", 0, 0]],
    }
    outer = {
        "layers": [
            old_layer("InputLayer", "input_2", batch_input_shape=[None, 20, 20, 3]),
            old_layer(
                "SlicingOpLambda",
                "getitem",
                ["input_2", 0, 0, {"slice_spec": turn}],
                function="__operators__.getitem",
            ),
            old_layer(
                "TFOpLambda",
                "add",
                ["getitem", 0, 0, {"bias": mean, "data_format": "NHWC"}],
                function="nn.bias_add",
            ),
            {
                "class_name": "Functional",
                "config": inner,
                "name": "vgg16",
                "inbound_nodes": [[["add", 0, 0, {"training": False}]]],
            },
            old_layer("GlobalAveragePooling2D", "pool", "vgg16"),
            old_layer("Dense", "dense", "pool", use_bias=False),
            old_layer("TFOpLambda", "softmax", ["dense", 0, 0, {}], function="nn.softmax"),
        ],
        "input_layers": [["input_2", 0, 0]],
        "output_layers": [["softmax", 0, 0]],
    }
    weights = {
        "vgg16": {"conv/kernel:0": kernel, "conv/bias:0": bias},
        "dense": {"dense/kernel:0": dense},
    }
    found = keras_files.read(
        old_file(tmp_path / "vgg.h5", {"class_name": "Functional", "config": outer}, weights)
    )
    assert found.container == "a Keras model (HDF5, Keras 2.15.0)"
    assert found.input == normalized(InputSpec(20, 20, resize="squash"), "caffe")
    same = M(
        [
            L.Input((20, 20, 3)),
            L.Conv2D(4, 3, 2, "same", activation="relu"),
            L.GlobalAveragePooling2D(),
            L.Dense(2, "softmax", use_bias=False),
        ]
    )
    same.set_weights([kernel, bias, dense])
    assert_same(found, *said(same, CAFFE, 20, 3))


def test_a_file_of_keras_1(tmp_path: Path) -> None:
    """A list of layers, and other names of what they are told."""
    kernel, dense = (np.random.default_rng(k).normal(size=s) for k, s in enumerate([(3, 3, 1, 4), (144, 2)]))
    shape = {"batch_input_shape": [None, 12, 12, 1]}
    conv = {
        "name": "c",
        "border_mode": "same",
        "subsample": [2, 2],
        "dim_ordering": "tf",
        "bias": False,
        **shape,
    }
    layers = [
        {"class_name": "Convolution2D", "config": {**conv, "activation": "relu"}},
        {"class_name": "Flatten", "config": {"name": "f"}},
        {"class_name": "Dense", "config": {"name": "d", "bias": True, "activation": "softmax"}},
    ]
    weights = {"c": {"c_W:0": kernel}, "d": {"d_W:0": dense, "d_b:0": np.array([0.5, -0.5])}}
    path = old_file(tmp_path / "old.h5", {"class_name": "Sequential", "config": layers}, weights)
    same = M(
        [
            L.Input((12, 12, 1)),
            L.Conv2D(4, 3, 2, "same", activation="relu", use_bias=False),
            L.Flatten(),
            L.Dense(2, "softmax"),
        ]
    )
    same.set_weights([kernel, dense, np.array([0.5, -0.5])])
    assert_same(keras_files.read(path), *said(same, UNIT, 12, 1))
    conv["dim_ordering"] = "th"
    layers[0]["config"] = conv
    path = old_file(tmp_path / "th.h5", {"class_name": "Sequential", "config": layers}, weights)
    with pytest.raises(CheckpointError, match="c \\(Convolution2D\\) takes its channels first"):
        keras_files.read(path)


@pytest.mark.parametrize(
    ("layer", "resize", "px", "resize_px"),
    [
        (L.Resizing(32, 32), "squash", 32, 32),
        (L.Resizing(32, 32, crop_to_aspect_ratio=True), "crop", 32, 32),
        (L.Resizing(32, 32, pad_to_aspect_ratio=True), "pad", 32, 32),
        (L.CenterCrop(28, 28), "squash", 28, 40),
    ],
)
def test_a_model_that_resizes_by_itself(
    layer: Any, resize: str, px: int, resize_px: int, tmp_path: Path
) -> None:
    made = M([L.Input((40, 40, 3)), layer, L.Conv2D(4, 3), L.Flatten(), L.Dense(2)])
    made.save(tmp_path / "model.keras")
    spec = keras_files.read(tmp_path / "model.keras").input
    assert (spec.resize, spec.px, spec.resize_px) == (resize, px, resize_px)


def test_an_open_input_size_is_assumed(tmp_path: Path) -> None:
    made = applied(None, L.Conv2D(4, 3), L.GlobalAveragePooling2D(), L.Dense(2))
    made.save(tmp_path / "model.keras")
    found = keras_files.read(tmp_path / "model.keras")
    assert (found.input.px, found.origins.px) == (224, ASSUMED)


def test_the_layers_and_what_the_outputs_mean(tmp_path: Path) -> None:
    for name, kinds, output in (
        ("nested_flatten_sigmoid", {Conv, Linear, Flatten}, "sigmoid"),
        ("several_labels", {Conv, Linear, Flatten, AdaptiveAvgPool}, "multi-label"),
        ("preprocess_input_of_tf_inside", {Conv, Linear, Flatten, AdaptiveMaxPool}, "softmax"),
    ):
        filled(name).save(tmp_path / "model.keras")
        found = keras_files.read(tmp_path / "model.keras")
        assert found.output == output
        assert {type(layer) for layer in found.network.layers if layer.in_words() != "2x2 max-pool"} == kinds
        assert found.origins.output == (ASSUMED if output == "softmax" else FILE)


# what no chain can have


def joined(px: int = 24) -> Any:
    x = inputs = L.Input((px, px, 3))
    a = L.Conv2D(4, 3, padding="same", name="a")(x)
    b = L.Conv2D(4, 3, padding="same", name="b")(a)
    x = L.GlobalAveragePooling2D()(L.Add(name="sum")([a, b]))
    return keras.Model(inputs, L.Dense(2)(x))


def used_twice() -> Any:
    x, shared = L.Input((24, 24, 3)), L.Conv2D(3, 3, name="shared")
    y = shared(shared(x))
    return keras.Model(x, L.Dense(2)(L.Flatten()(y)))


def two_inputs() -> Any:
    a, b = L.Input((24, 24, 3), name="a"), L.Input((24, 24, 3), name="b")
    return keras.Model([a, b], L.Dense(2)(L.Flatten()(L.Concatenate()([a, b]))))


def two_outputs() -> Any:
    x = L.Input((24, 24, 3))
    y = L.Flatten()(x)
    return keras.Model(x, [L.Dense(2, name="d1")(y), L.Dense(3, name="d2")(y)])


@keras.saving.register_keras_serializable(package="mine")
class Own(L.Layer):  # type: ignore[misc, name-defined]
    def call(self, x: Any) -> Any:
        return x * 2


@keras.saving.register_keras_serializable(package="mine")
class OwnModel(keras.Model):  # type: ignore[misc, name-defined]
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.dense = L.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def own_model() -> Any:
    made = OwnModel()
    made(np.zeros((1, 4)))
    return made


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "join": (joined, r"the network branches: sum \(Add\) joins a and b; expected a chain"),
    "twice": (used_twice, r"shared \(Conv2D\) is used twice; expected a chain"),
    "inputs": (two_inputs, r"it has 2 inputs \(a, b\); expected one picture in"),
    "outputs": (two_outputs, r"it has 2 outputs \(d1, d2\); expected one picture in"),
    "lambda": (
        lambda: applied(24, L.Lambda(lambda x: x / 255, name="scale"), L.Flatten(), L.Dense(2)),
        r"scale \(Lambda\) is a Lambda layer: it holds Python code, which is not run",
    ),
    "separable": (
        lambda: applied(24, L.SeparableConv2D(4, 3, name="s"), L.Flatten(), L.Dense(2)),
        r"s \(SeparableConv2D\) is a convolution of each channel by itself",
    ),
    "depthwise": (lambda: applied(24, L.DepthwiseConv2D(3, name="s"), L.Flatten(), L.Dense(2)), "by itself"),
    "groups": (
        lambda: applied(24, L.Conv2D(6, 3, groups=3, name="g"), L.Flatten(), L.Dense(2)),
        "g is a convolution with 3 groups; expected one",
    ),
    "dilation": (
        lambda: applied(24, L.Conv2D(6, 3, dilation_rate=2, name="g"), L.Flatten(), L.Dense(2)),
        r"g is a convolution with dilation \(2, 2\)",
    ),
    "prelu": (lambda: applied(24, L.PReLU(name="p"), L.Flatten(), L.Dense(2)), "has a slope of its own for"),
    "activation": (
        lambda: applied(24, L.Conv2D(4, 3, activation="softplus", name="c"), L.Flatten(), L.Dense(2)),
        r"c \(Conv2D\) has the activation softplus, which this program does not have",
    ),
    "threshold": (
        lambda: applied(24, L.ReLU(threshold=1.0, name="r"), L.Flatten(), L.Dense(2)),
        r"r \(ReLU\) has max_value inf, negative_slope 0 and threshold 1; expected",
    ),
    "transposed": (
        lambda: applied(24, L.Conv2DTranspose(4, 3, name="t"), L.Flatten(), L.Dense(2)),
        r"t \(Conv2DTranspose\) is no layer that this program knows",
    ),
    "own layer": (
        lambda: applied(24, Own(name="o"), L.Flatten(), L.Dense(2)),
        "o is a Own, a layer of its author's own; expected layers of Keras",
    ),
    "own model": (
        own_model,
        "it is a OwnModel, a class of its author's own, whose layers the file does not list",
    ),
    "maps at the end": (
        lambda: applied(24, L.Conv2D(4, 3)),
        "the network ends in maps of 22 x 22; expected one list of logits",
    ),
    "features without a head": (
        lambda: vgg_base(8),
        r"it holds the features only \(the last layer with weights is block3_conv3, a convolution with an",
    ),
    "features with a pool": (
        lambda: applied(None, vgg_base(40), L.GlobalAveragePooling2D()),
        "its classifier is missing: save the whole network",
    ),
    "channels": (
        lambda: applied(24, L.Conv2D(4, 3), L.Flatten(), L.Dense(2), channels=4),
        r"the network reads 4 channels; expected 3 \(colours\) or 1 \(grey\)",
    ),
    "oblong": (
        lambda: M([L.Input((24, 32, 3)), L.Flatten(), L.Dense(2)]),
        "it takes pictures of 24 x 32 px; expected square ones",
    ),
    "features": (lambda: M([L.Input((24,)), L.Dense(2)]), "its input has 1 dimensions; expected 3"),
    "pad and scale": (
        lambda: applied(
            24, L.ZeroPadding2D(), L.Rescaling(1.0, 0.5), L.Conv2D(3, 3), L.Flatten(), L.Dense(2)
        ),
        "stands between a zero padding and its convolution, so that its zeros change",
    ),
    "norm and activation": (
        lambda: applied(24, L.Flatten(), L.BatchNormalization(), L.ReLU(name="r"), L.Dense(2)),
        r"r \(ReLU\) stands between a normalisation of the flattened maps and the fully connected layer",
    ),
    "averages with padding": (
        lambda: applied(24, L.AveragePooling2D(3, 1, "same", name="p"), L.Flatten(), L.Dense(2)),
        r"p \(AveragePooling2D\) is a pool with the padding \[1, 1, 1, 1\]",
    ),
    "uneven padding": (
        lambda: applied(24, L.MaxPooling2D(4, 1, "same", name="p"), L.Flatten(), L.Dense(2)),
        r"p \(MaxPooling2D\) is a pool with the padding \[1, 1, 2, 2\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_chain_can_have_is_named(name: str, tmp_path: Path) -> None:
    make, expected = REFUSED[name]
    make().save(tmp_path / "model.keras")
    with pytest.raises(CheckpointError, match=expected):
        keras_files.read(tmp_path / "model.keras")


def test_weights_alone_have_no_layers(tmp_path: Path) -> None:
    made = filled("one_channel")
    made.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(CheckpointError, match="holds weights of Keras alone, without the layers"):
        keras_files.read(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:  # as save_weights of tf.keras
        file.attrs["layer_names"] = [b"dense"]
    with pytest.raises(CheckpointError, match="holds weights of Keras alone, without the layers"):
        keras_files.read(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["measurements"] = np.zeros(3)
    with pytest.raises(CheckpointError, match="is an HDF5 file: it holds no Keras model, but measurements;"):
        keras_files.read(tmp_path / "c.h5")


# files that would make a careless reader follow, unpack or run something


def with_kernel(path: Path, put: Callable[[Any, str], None]) -> Path:
    """A small file whose dense layer's kernel is what ``put`` makes of it."""
    layers = [
        {"class_name": "Flatten", "config": {"name": "f", "batch_input_shape": [None, 2, 2, 3]}},
        {"class_name": "Dense", "config": {"name": "d", "use_bias": False}},
    ]
    old_file(path, {"class_name": "Sequential", "config": layers}, {"d": {"k": np.ones((12, 2))}})
    with h5py.File(path, "a") as file:
        del file["model_weights/d/k"]
        put(file["model_weights/d"], "k")
    return path


def external_link(group: Any, name: str) -> None:
    group[name] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(group: Any, name: str) -> None:
    group[name] = h5py.SoftLink("/model_weights")


def external_storage(group: Any, name: str) -> None:
    group.create_dataset(name, (12, 2), "f4", external=[("/etc/passwd", 0, 96)])


def virtual(group: Any, name: str) -> None:
    layout = h5py.VirtualLayout((12, 2), "f4")
    layout[...] = h5py.VirtualSource("/etc/passwd", "x", (12, 2))
    group.create_virtual_dataset(name, layout)


def objects(group: Any, name: str) -> None:
    group.create_dataset(name, (12, 2), h5py.string_dtype())


def huge(group: Any, name: str) -> None:
    group.create_dataset(name, (2**20, 2**20), "f4", chunks=(2**10, 2**10), compression="gzip")


def integers(group: Any, name: str) -> None:
    group[name] = np.ones((12, 2), np.int8)


@pytest.mark.parametrize(
    ("put", "expected"),
    [
        (external_link, "its k is a link to another place or file, which is not followed"),
        (soft_link, "its k is a link to another place or file, which is not followed"),
        (external_storage, "its k lies in another file, which is not read"),
        (virtual, "its k lies in another file, which is not read"),
        (objects, "its k holds object; expected floating-point numbers"),
        (huge, "its k is said to be .* more than the file holds"),
        (
            integers,
            "its k holds int8; expected floating-point numbers: give the model before it was quantized",
        ),
    ],
)
def test_weights_are_in_the_file_itself(
    put: Callable[[Any, str], None], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=expected):
        keras_files.read(with_kernel(tmp_path / "model.h5", put))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_code_in_a_lambda_layer_is_not_run(suffix: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    name = str(canary)
    code = L.Lambda(lambda x: x + float(open(name, "w").write("run")), output_shape=(24, 24, 3))  # noqa: PTH123, SIM115
    applied(24, code, L.Flatten(), L.Dense(2)).save(tmp_path / f"model{suffix}")
    canary.unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="holds Python code, which is not run from a file"):
        keras_files.read(tmp_path / f"model{suffix}")
    assert not canary.exists()


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    filled("one_channel").save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name in (keras_store.WEIGHTS, keras_store.CONFIG):
        with zipfile.ZipFile(tmp_path / "bomb.keras", "w", zipfile.ZIP_BZIP2) as archive:
            for member, content in members.items():
                archive.writestr(member, bytes(80_000_000) if member == name else content)
        with pytest.raises(CheckpointError, match="80000000 bytes, which no network needs"):
            keras_files.read(tmp_path / "bomb.keras")


def test_damage_is_one_sentence(tmp_path: Path) -> None:
    filled("one_channel").save(tmp_path / "model.h5")
    whole = (tmp_path / "model.h5").read_bytes()
    for length in (600, 3000, len(whole) // 2):
        (tmp_path / "model.h5").write_bytes(whole[:length])
        with pytest.raises(
            CheckpointError,
            match=r"is an HDF5 file that cannot be read .*; it may be damaged: fetch it again",
        ):
            keras_files.read(tmp_path / "model.h5")


def test_without_h5py_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled("one_channel").save(tmp_path / "model.keras")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(CheckpointError, match="pip install 'vgg-export\\[keras\\]'"):
        keras_files.read(tmp_path / "model.keras")


def test_a_layer_that_depends_on_itself(tmp_path: Path) -> None:
    shape = {"batch_input_shape": [None, 8, 8, 3]}
    config = {
        "layers": [
            old_layer("InputLayer", "i", **shape),
            old_layer("ReLU", "a", "b"),
            old_layer("ReLU", "b", "a"),
        ],
        "input_layers": [["i", 0, 0]],
        "output_layers": [["b", 0, 0]],
    }
    with pytest.raises(CheckpointError, match="depends on itself; the file is damaged"):
        keras_files.read(old_file(tmp_path / "m.h5", {"class_name": "Functional", "config": config}, {}))


def test_a_batch_norm_of_the_pictures_at_hand(tmp_path: Path) -> None:
    x = inputs = L.Input((8, 8, 3))
    x = L.BatchNormalization(name="n")(x, training=True)
    keras.Model(inputs, L.Dense(2)(L.Flatten()(x))).save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError, match=r"n \(BatchNormalization\) is called with training=True"):
        keras_files.read(tmp_path / "m.keras")


def test_an_archive_of_tensorflow_2_13(tmp_path: Path) -> None:
    """It has other names for the groups of weights, and counts each layer with weights twice."""
    inner = M([L.Input((20, 20, 4)), L.Conv2D(5, 3, activation="relu")])
    augment = M([L.Input((20, 20, 3)), L.RandomFlip()])
    first, second = L.Conv2D(4, 3, padding="same"), L.Conv2D(4, 3, padding="same", activation="relu")
    made = M([L.Input((20, 20, 3)), augment, first, second, inner, L.Flatten(), L.Dense(3)])
    made.save(tmp_path / "new.keras")
    with zipfile.ZipFile(tmp_path / "new.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    inside, old = "_layer_checkpoint_dependencies", tmp_path / "old.h5"
    with h5py.File(old, "w") as file:
        for path, layer in {
            f"{inside}/conv2d": first,
            f"{inside}/conv2d_2": second,
            f"{inside}/sequential_1/{inside}/conv2d": inner.layers[0],
            f"{inside}/dense": made.layers[-1],
        }.items():
            for k, numbers in enumerate(layer.get_weights()):
                file[f"{path}/vars/{k}"] = numbers
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        for name, content in (members | {keras_store.WEIGHTS: old.read_bytes()}).items():
            archive.writestr(name, content)
    assert_same(keras_files.read(tmp_path / "old.keras"), *said(made, UNIT, 20, 3))


@pytest.mark.parametrize(
    ("probe", "said"),
    [("while True: pass", "did not read it to its end in 1 s"), ("import os; os.abort()", "crashes")],
)
def test_a_file_in_which_the_library_hangs_or_crashes_is_refused(
    probe: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/fuzz found one in which HDF5 2.0 never ends; another version may end."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    monkeypatch.setattr(keras_store, "_PROBE", probe)
    monkeypatch.setattr(keras_store, "LEAST_S", 1.0)
    with pytest.raises(CheckpointError, match=f"the HDF5 library {said}"):
        keras_files.read(tmp_path / "a.h5")
