"""The files that a graph names, and graphs that read what the manifest does not list."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import reseal
from damage import rewrite
from onnx import TensorProto, helper, numpy_helper

from vgg_runtime.bundle import graph_files, manifest
from vgg_runtime.bundle.opened import Bundle
from vgg_runtime.errors import BundleError


def outside(name: str) -> onnx.TensorProto:
    """A tensor whose values lie in the file ``name``."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", name), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*nodes: onnx.NodeProto, **fields: Any) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "g", [], [], [numpy_helper.from_array(np.arange(3.0), "inside")])
    for name, values in fields.items():
        getattr(graph, name).extend(values)
    return helper.make_model(graph)


def sparse(name: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=outside(name), indices=outside(f"{name}.at"), dims=[9])


def node(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["x"], **attributes)


def with_function() -> onnx.ModelProto:
    made = model()
    function = helper.make_function("d", "F", [], ["x"], [node(value=outside("f"))], [])
    function.attribute_proto.append(helper.make_attribute("default", outside("default")))
    made.functions.append(function)
    return made


PLACES: list[tuple[Callable[[], onnx.ModelProto], set[str]]] = [
    (model, set()),
    (lambda: model(initializer=[outside("a"), outside("b/c"), outside("../d")]), {"a", "b/c", "../d"}),
    (lambda: model(sparse_initializer=[sparse("a")]), {"a", "a.at"}),
    (lambda: model(node(value=outside("a"))), {"a"}),
    (lambda: model(node(values=[outside("a"), outside("b")])), {"a", "b"}),
    (lambda: model(node(body=model(node(value=outside("deep"))).graph)), {"deep"}),
    (lambda: model(node(bodies=[model(initializer=[outside("a")]).graph])), {"a"}),
    (lambda: model(node(sparse_value=sparse("a"))), {"a", "a.at"}),
    (with_function, {"f", "default"}),
]


@pytest.mark.parametrize(("make", "expected"), PLACES)
def test_files_are_found_wherever_a_tensor_can_be(
    make: Callable[[], onnx.ModelProto], expected: set[str], tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString())
    assert graph_files.named_in(tmp_path / "m.onnx") == expected


def test_what_protobuf_reads_is_read_however_it_is_written(tmp_path: Path) -> None:
    path, plain = tmp_path / "m.onnx", model(initializer=[outside("a")]).SerializeToString()
    group, long_tag = b"\xa3\x06" + b"\x08\x01" + b"\xa4\x06", b"\xba\x80\x80\x80\x70"  # field 7
    graph = model(initializer=[outside("b")]).graph.SerializeToString()
    again = long_tag + len(graph).to_bytes(1, "little") + graph
    assert len(graph) < 128
    path.write_bytes(group + plain + again)
    assert graph_files.named_in(path) == {"a", "b"}
    read = onnx.ModelProto.FromString(group + plain + b"\x3a" + again[5:])
    assert [tensor.name for tensor in read.graph.initializer] == ["inside", "a", "inside", "b"]


def test_what_is_no_graph_is_said_to_be_none(tmp_path: Path) -> None:
    path, whole = tmp_path / "m.onnx", model(initializer=[outside("a")]).SerializeToString()
    for content in (
        b"",
        b"not an onnx file",
        whole[:-1],
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"mmap|kind 6|longer|ends within|more than ten"):
            graph_files.named_in(path)
    deep = b""
    for k in range(120):
        deep = (b"\x32", b"\x2a", b"\x0a")[k % 3] + onnx_length(len(deep)) + deep
    path.write_bytes(b"\x3a" + onnx_length(len(deep)) + deep)
    with pytest.raises(ValueError, match="nested too deeply"):
        graph_files.named_in(path)


def onnx_length(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + onnx_length(value >> 7)


def test_nothing_that_onnx_reads_is_missed_in_damaged_graphs(tmp_path: Path) -> None:
    whole, drawn = bytearray(with_function().SerializeToString()), random.Random(5)
    path, both = tmp_path / "m.onnx", 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            damaged[drawn.randrange(len(damaged))] ^= 1 << drawn.randrange(8)
        try:
            read = onnx.ModelProto.FromString(bytes(damaged))
        except Exception:  # whatever protobuf raises: onnxruntime does not read it either
            continue
        constants = [a.t for f in read.functions for n in f.node for a in n.attribute]
        values = {e.value for t in constants for e in t.external_data if e.key == "location"}
        # the package returns bytes where they are no UTF-8
        expected = {os.fsdecode(value) for value in values}
        path.write_bytes(damaged)
        assert graph_files.named_in(path) >= expected
        both += bool(expected)
    assert both > 300


def test_weights_that_the_manifest_does_not_list_are_refused(bundle_copy: Path) -> None:
    entry = manifest.read(bundle_copy).variant("baseline").build.model
    graph = bundle_copy / entry.path
    loaded = onnx.load(graph)
    onnx.save(loaded, graph, save_as_external_data=True, location="unlisted.bin", size_threshold=100)
    rewrite(bundle_copy, entry.path, graph.read_bytes())
    variants = json.loads((bundle_copy / manifest.FILE_NAME).read_text())["variants"]
    (build,) = (b for v in variants for b in v["builds"] if b["model"]["path"] == entry.path)
    sentence = "reads weights from 'unlisted.bin', which the manifest does not name as its weights; do not"
    for weights in (None, build["weights"]):
        build["weights"] = weights
        reseal(bundle_copy, variants=variants)
        bundle = Bundle.read(bundle_copy)
        files = bundle.manifest.variant("baseline").build.files
        with pytest.raises(BundleError, match=rf"{graph.name} {sentence}"):
            bundle.check(files)
    content = (graph.parent / "unlisted.bin").read_bytes()
    build["weights"] = {
        "path": f"{Path(entry.path).parent.as_posix()}/unlisted.bin",
        "sha256": "",
        "bytes": 0,
    }
    reseal(bundle_copy, variants=variants)
    rewrite(bundle_copy, build["weights"]["path"], content)
    bundle = Bundle.read(bundle_copy)
    bundle.check(bundle.manifest.variant("baseline").build.files)
    bundle.check(bundle.manifest.all_files())
    with pytest.raises(BundleError, match=r"unlisted\.bin"):
        bundle.check([bundle.manifest.variant("baseline").build.model])  # not all that it reads
