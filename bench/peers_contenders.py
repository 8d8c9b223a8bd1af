"""The contenders, as data. Their functions are named, not imported, so that an engine that is not installed
still gets a row."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vgg_runtime.bundle import builds
from vgg_runtime.bundle.input_spec import InputSpec
from vgg_runtime.bundle.manifest import Manifest, Variant

ENGINES, COMPRESSING = "peers_engines", "peers_compressed"


@dataclasses.dataclass(frozen=True)
class Contender:
    """A way to run the network.

    ``prepare`` and ``engine`` are ``module:name``. From the baseline the first makes the ``files`` that would
    be shipped, in a process of its own (conversions need much memory); the second loads and runs them with
    ``settings``. A contender whose files are there already has no ``prepare``. ``packages`` are the
    distributions whose versions matter.

    ``after``: another function that prepares; its first file then takes the place of the baseline's ONNX
    file. ``sources``: what it is made from where that differs from the others'. ``facts``: what is known of
    its network beforehand, as fields of its row. ``absent``: why it cannot take part.
    """

    name: str
    engine: str
    packages: tuple[str, ...]
    prepare: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    files: tuple[Path, ...] = ()
    preprocessing: InputSpec | None = None  # None: the baseline's
    after: str | None = None
    sources: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, int] = dataclasses.field(default_factory=dict)
    absent: str | None = None

    @property
    def compresses(self) -> bool:
        """Whether it makes the network itself smaller."""
        return COMPRESSING in (self.after or self.prepare or "")


def _peer(name: str, engine: str, prepare: str, packages: str, **settings: Any) -> Contender:
    return Contender(name, f"{ENGINES}:{engine}", tuple(packages.split()), f"{ENGINES}:{prepare}", settings)


# Some engines compute in less than single precision where the CPU can, unless they are told not to. They take
# part both ways.
_F32 = {"INFERENCE_PRECISION_HINT": "f32"}
_NO_FP16 = dict.fromkeys(("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"), False)

PEERS = (
    _peer("torch eager", "TorchEager", "checkpoint_as_it_is", "torch"),
    _peer("torch.compile", "TorchCompiled", "checkpoint_as_it_is", "torch"),
    _peer("onnxruntime quantize_static, defaults", "OnnxRuntime", "onnxruntime_int8", "onnxruntime"),
    _peer("OpenVINO fp32", "OpenVino", "openvino_fp32", "openvino", **_F32),
    _peer("OpenVINO fp32 file, default precision", "OpenVino", "openvino_fp32", "openvino"),
    _peer("OpenVINO int8 (NNCF), rest in fp32", "OpenVino", "openvino_int8", "openvino nncf", **_F32),
    _peer("OpenVINO int8 (NNCF), default precision", "OpenVino", "openvino_int8", "openvino nncf"),
    _peer("ncnn fp32", "Ncnn", "ncnn_fp32", "ncnn pnnx", **_NO_FP16),
    _peer("ncnn fp32 file, default precision", "Ncnn", "ncnn_fp32", "ncnn pnnx"),
    _peer("ncnn int8", "Ncnn", "ncnn_int8", "ncnn pnnx"),
    _peer("LiteRT fp32 (XNNPACK)", "LiteRt", "litert_fp32", "ai-edge-litert litert-torch"),
    _peer("LiteRT int8 (XNNPACK)", "LiteRt", "litert_int8", "ai-edge-litert litert-torch ai-edge-quantizer"),
)

# They make the network itself smaller, each once, and run it as it is and in the int8 of onnxruntime's
# defaults.
COMPRESSED = tuple(
    Contender(
        f"{name}, {kind}",
        f"{ENGINES}:OnnxRuntime",
        ("onnxruntime", *packages.split()),
        f"{ENGINES}:onnxruntime_int8" if kind == "int8" else f"{COMPRESSING}:{function}",
        after=f"{COMPRESSING}:{function}" if kind == "int8" else None,
    )
    for name, function, packages in (
        ("Torch-Pruning", "torch_pruning", "torch-pruning"),
        ("fasterai pruning", "fasterai_pruning", "fasterai torch-pruning"),
        ("fasterai decomposition", "fasterai_decomposition", "fasterai"),
    )
    for kind in ("fp32", "int8")
)


def of_baseline(manifest: Manifest) -> tuple[Contender, ...]:
    """Those that run the baseline's network as it is."""
    return tuple(dataclasses.replace(peer, facts=_facts(manifest.variants[0])) for peer in PEERS)


def _facts(variant: Variant) -> dict[str, int]:
    return {"parameters": variant.parameters, "macs": variant.macs}


def of_bundle(folder: Path, manifest: Manifest) -> tuple[Contender, ...]:
    """The variants of a bundle, the baseline first: it is the fp32 model under onnxruntime."""
    return tuple(
        Contender(
            name=f"vgg-export {variant.id}" + (" = onnxruntime fp32" if number == 0 else ""),
            engine=f"{ENGINES}:OnnxRuntime",
            packages=("onnxruntime",),
            settings=dataclasses.asdict(builds.session_here(variant.build, builds.FAST)),
            files=tuple(folder / entry.path for entry in variant.build.files),
            preprocessing=variant.preprocessing,
            facts=_facts(variant),
        )
        for number, variant in enumerate(manifest.variants)
    )


def chosen(contenders: Sequence[Contender], wanted: str | None) -> tuple[Contender, ...]:
    """The contenders whose name contains one of the comma-separated parts of ``wanted``. The first, with
    which the others are compared, is always among them."""
    parts = [part.strip().casefold() for part in (wanted or "").split(",") if part.strip()]
    return tuple(
        c
        for number, c in enumerate(contenders)
        if number == 0 or not parts or any(part in c.name.casefold() for part in parts)
    )
