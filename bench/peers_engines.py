"""Makes and runs each engine's file. Engines are imported where they are used, so that none has to be
installed.

A function that prepares takes ``Sources`` and a folder of its own and returns the files that would be
shipped, the one to be loaded first, alone or in ``Made``. An engine is a class: ``modules`` are imported
before the clock of the load time starts, ``__init__`` loads, a call is one inference, ``bfloat16`` says
whether it may compute in less than single precision, and ``remark`` what it says of itself.
"""

import dataclasses
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

import vgg_runtime as _  # noqa: F401  the import keeps onnxruntime from uploading

Tensor = npt.NDArray[np.float32]
CONVERTER_LINES = 3  # last lines of a failed converter's output that the reason quotes


class NotPossibleError(Exception):
    """Why a contender cannot be made, in one sentence for its row."""


@dataclasses.dataclass(frozen=True)
class Compression:
    """What a contender that makes the network itself smaller has to meet. ``macs``: multiply-accumulates per
    inference. ``minutes``: how long it may fine-tune. ``pictures``: a file of
    ``peers_compressed.write_pictures``."""

    macs: int
    minutes: float
    pictures: Path


@dataclasses.dataclass(frozen=True)
class Made:
    """The ``files`` of a contender that has another network than the baseline: its numbers of ``parameters``
    and of multiply-accumulates, and how it was ``made``."""

    files: list[Path]
    parameters: int
    macs: int
    made: str


@dataclasses.dataclass(frozen=True)
class Sources:
    """What every contender is made from. ``calibration`` is an .npy file of preprocessed pictures [n, 3, px,
    px]."""

    onnx: Path
    checkpoint: Path
    calibration: Path
    px: int
    threads: int
    compression: Compression | None = None

    def pictures(self) -> Tensor:
        """The calibration pictures, read from the disk as they are used."""
        pictures: Tensor = np.load(self.calibration, mmap_mode="r")
        return pictures

    def network(self) -> Any:
        """The checkpoint as a torch module in evaluation mode."""
        from vgg_export.network import checkpoint as checkpoints

        return checkpoints.load(self.checkpoint).model()


class Engine:
    """A loaded model: float32 [1, 3, px, px] -> logits [1, classes]."""

    modules: ClassVar[tuple[str, ...]] = ()
    bfloat16 = False
    remark = ""

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        raise NotImplementedError

    def __call__(self, batch: Tensor) -> Tensor:
        raise NotImplementedError


# onnxruntime


class OnnxRuntime(Engine):
    modules = ("onnxruntime", "vgg_runtime.bundle.session")

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        from vgg_runtime.bundle.manifest import SessionSettings
        from vgg_runtime.bundle.session import Model

        self._model = Model(files[0], SessionSettings(**settings), threads)

    def __call__(self, batch: Tensor) -> Tensor:
        return self._model(batch)


class _Batches:
    """A CalibrationDataReader of onnxruntime, which accepts anything with ``get_next``."""

    def __init__(self, pictures: Tensor) -> None:
        self._remaining = iter(pictures)

    def get_next(self) -> dict[str, Tensor] | None:
        picture = next(self._remaining, None)
        return None if picture is None else {"input": np.ascontiguousarray(picture[None])}


def onnxruntime_int8(sources: Sources, folder: Path) -> list[Path]:
    """What ``quantize_static`` makes when only the model and the pictures are named."""
    from onnxruntime.quantization import quantize_static

    made = folder / "int8.onnx"
    quantize_static(str(sources.onnx), str(made), _Batches(sources.pictures()))
    return [made]


# torch


def checkpoint_as_it_is(sources: Sources, folder: Path) -> list[Path]:
    """torch runs the checkpoint itself."""
    if not sources.checkpoint.is_file():
        raise NotPossibleError(f"there is no checkpoint {sources.checkpoint}; name it with --checkpoint")
    return [sources.checkpoint]


class TorchEager(Engine):
    modules = ("torch", "vgg_export.network.chain")

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        import torch

        from vgg_export.network import checkpoint as checkpoints

        torch.set_num_threads(threads)
        self.bfloat16 = torch.get_float32_matmul_precision() == "medium"
        self.remark = f"torch {torch.__version__}" + (
            "; its peak holds the CUDA libraries too" if torch.version.cuda else ""
        )
        self._torch, self._network = torch, checkpoints.load(files[0]).model()

    def __call__(self, batch: Tensor) -> Tensor:
        with self._torch.inference_mode():
            logits: Tensor = self._network(self._torch.from_numpy(batch)).numpy()
        return logits


class TorchCompiled(TorchEager):
    """It compiles in the first inference."""

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        super().__init__(files, threads, settings)
        self.remark += "; it compiles in its first inference"
        self._network = self._torch.compile(self._network)


# OpenVINO


def _openvino_model(sources: Sources) -> Any:
    import openvino

    return openvino.convert_model(str(sources.onnx), input=[1, 3, sources.px, sources.px])


def _openvino_files(model: Any, path: Path) -> list[Path]:
    import openvino

    # the default would halve the weights' precision
    openvino.save_model(model, str(path), compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def openvino_fp32(sources: Sources, folder: Path) -> list[Path]:
    return _openvino_files(_openvino_model(sources), folder / "fp32.xml")


def openvino_int8(sources: Sources, folder: Path) -> list[Path]:
    """NNCF's post-training quantization with its defaults."""
    import nncf

    pictures = sources.pictures()
    data = nncf.Dataset(range(len(pictures)), lambda k: np.ascontiguousarray(pictures[k : k + 1]))
    return _openvino_files(nncf.quantize(_openvino_model(sources), data), folder / "int8.xml")


class OpenVino(Engine):
    modules = ("openvino",)

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        import openvino

        wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **settings}
        compiled = openvino.Core().compile_model(str(files[0]), "CPU", wanted)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.bfloat16, self.remark = precision == "bf16", f"INFERENCE_PRECISION_HINT {precision}"
        self._request = compiled.create_infer_request()

    def __call__(self, batch: Tensor) -> Tensor:
        logits: Tensor = self._request.infer({0: batch}, share_inputs=True)[0]
        return logits


# ncnn


def ncnn_fp32(sources: Sources, folder: Path) -> list[Path]:
    """Convert with pnnx, which stores the weights as fp16 unless it is told not to."""
    import pnnx
    import torch

    traced = folder / "network.pt"
    trace: Any = torch.jit.trace
    trace(sources.network(), torch.zeros(1, 3, sources.px, sources.px)).save(str(traced))
    _converter([pnnx.EXEC_PATH, traced.name, f"inputshape=[1,3,{sources.px},{sources.px}]", "fp16=0"], folder)
    return [folder / "network.ncnn.param", folder / "network.ncnn.bin"]


def ncnn_int8(sources: Sources, folder: Path) -> list[Path]:
    """Quantize with ncnn's own two tools, on the preprocessed calibration pictures (``type=1``: arrays
    instead of picture files)."""
    tools = [shutil.which(name) for name in ("ncnn2table", "ncnn2int8")]
    if None in tools:
        raise NotPossibleError(
            "ncnn2table and ncnn2int8 are not on the PATH; neither ncnn's nor pnnx's package on PyPI has them"
        )
    param, weights = (str(path) for path in ncnn_fp32(sources, folder))
    names = []
    for number, picture in enumerate(sources.pictures()):
        np.save(folder / f"{number}.npy", picture)
        names.append(f"{number}.npy")  # without its folder: the tool reads at most 255 characters
    (folder / "pictures.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    shape = f"shape=[{sources.px},{sources.px},3]"
    _converter(
        [
            str(tools[0]),
            param,
            weights,
            "pictures.txt",
            "table",
            shape,
            f"thread={sources.threads}",
            "method=kl",
            "type=1",
        ],
        folder,
    )
    _converter([str(tools[1]), param, weights, "int8.param", "int8.bin", "table"], folder)
    return [folder / "int8.param", folder / "int8.bin"]


def _converter(command: list[str], folder: Path) -> None:
    """Run a converter.

    Raises:
        RuntimeError: with the last lines it wrote.
    """
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout)
    if done.returncode:
        said = " / ".join(done.stdout.strip().splitlines()[-CONVERTER_LINES:])
        raise RuntimeError(f"{Path(command[0]).name} ended with code {done.returncode}: {said}")


class Ncnn(Engine):
    modules = ("ncnn",)

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        chosen = self._net.opt
        chosen.num_threads = threads
        for name, value in settings.items():
            setattr(chosen, name, value)
        self.bfloat16 = bool(chosen.use_bf16_storage)
        self.remark = "" if "use_fp16_storage" in settings else "may compute in fp16 where the CPU can"
        if self._net.load_param(str(files[0])) or self._net.load_model(str(files[1])):
            raise RuntimeError(f"ncnn cannot load {files[0].name}")

    def __call__(self, batch: Tensor) -> Tensor:
        extractor = self._net.create_extractor()
        extractor.input("in0", self._ncnn.Mat(batch[0]))
        code, found = extractor.extract("out0")
        if code:
            raise RuntimeError(f"ncnn's inference ended with code {code}")
        return np.array(found, np.float32)[None]


# LiteRT


def litert_fp32(sources: Sources, folder: Path) -> list[Path]:
    import litert_torch
    import torch

    made = folder / "fp32.tflite"
    litert_torch.convert(sources.network(), (torch.zeros(1, 3, sources.px, sources.px),)).export(str(made))
    return [made]


def litert_int8(sources: Sources, folder: Path) -> list[Path]:
    """The quantizer's recipe with static ranges for weights and activations of 8 bit."""
    from ai_edge_quantizer import quantizer, recipe

    made, source = folder / "int8.tflite", str(litert_fp32(sources, folder)[0])
    signature, names = next(iter(_interpreter(source, sources.threads).get_signature_list().items()))
    pictures = [{names["inputs"][0]: np.ascontiguousarray(picture[None])} for picture in sources.pictures()]
    work = quantizer.Quantizer(source)
    work.load_quantization_recipe(recipe.static_wi8_ai8())
    work.quantize(work.calibrate({signature: pictures})).export_model(str(made))
    return [made]


def _interpreter(path: str, threads: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(path, num_threads=threads)


class LiteRt(Engine):
    """Its int8 file takes and gives integers; converting them is a part of each inference."""

    modules = ("ai_edge_litert.interpreter",)

    def __init__(self, files: Sequence[Path], threads: int, settings: dict[str, Any]) -> None:
        self._interpreter = _interpreter(str(files[0]), threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._output = self._interpreter.get_output_details()[0]

    def __call__(self, batch: Tensor) -> Tensor:
        self._interpreter.set_tensor(self._input["index"], _to_integers(batch, self._input))
        self._interpreter.invoke()
        return _to_floats(self._interpreter.get_tensor(self._output["index"]), self._output)


def _to_integers(batch: Tensor, details: dict[str, Any]) -> npt.NDArray[Any]:
    """The batch as the integers that a LiteRT tensor takes; unchanged where it takes floats."""
    if details["dtype"] == np.float32:
        return batch
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    integers: npt.NDArray[Any] = np.clip(np.rint(batch / scale) + zero_point, limits.min, limits.max).astype(
        details["dtype"]
    )
    return integers


def _to_floats(values: npt.NDArray[Any], details: dict[str, Any]) -> Tensor:
    """The values of a LiteRT tensor as floats, the reverse of ``_to_integers``."""
    if details["dtype"] == np.float32:
        return values
    scale, zero_point = details["quantization"]
    floats: Tensor = (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return floats
