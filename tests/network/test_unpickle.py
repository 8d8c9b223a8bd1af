import argparse
import collections
import copyreg
import datetime
import enum
import functools
import importlib
import io
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from vgg_export.core.errors import CheckpointError
from vgg_export.network.readers import module_trees, pickle_machine, unpickle
from vgg_export.network.readers.hostile_names import is_hostile
from vgg_export.network.readers.unpickle import Global, Stub

CANARY = "canary.txt"
HERE = __name__


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test runs beside a canary: a payload of the tests creates the file, or a stray import shows."""
    monkeypatch.chdir(tmp_path)
    allowed = torch.serialization.get_safe_globals()
    loaded = set(sys.modules)
    yield
    assert not (tmp_path / CANARY).exists()
    assert torch.serialization.get_safe_globals() == allowed
    strange = {name for name in set(sys.modules) - loaded if name.startswith(("trap", "antigravity"))}
    assert not strange


def saved(value: object, path: Path, *, old: bool = False, protocol: int = 2) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not old, pickle_protocol=protocol)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        unpickle.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def archive(path: Path, pickled: bytes, **members: bytes) -> Path:
    """A file as torch.save makes it, with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/data.pkl", pickled)
        made.writestr("x/byteorder", b"little")
        for name, data in members.items():
            made.writestr(f"x/data/{name.removeprefix('_')}", data)
    return path


# What files hold


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def checkpoint() -> dict[str, Any]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "state_dict": network.state_dict(),
        "parameters": dict(network.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "views": [whole, whole[1:3, ::2], whole.t(), whole[2], torch.tensor(3.5), torch.empty(0, 3)],
        "types": [
            torch.ones(3).to(kind)
            for kind in (torch.half, torch.bfloat16, torch.double, torch.int8, torch.bool)
        ],
        "new types": [torch.ones(4).to(torch.float8_e4m3fn), torch.ones(4, dtype=torch.uint16)],
        "epoch": 3,
        "acc": 93.25,
        "names": ["ä", "b", "\u65e5"],
        "big": 2**70,
        "size": torch.Size([1, 2]),
        "flags": (True, False, None),
        "set": {1, 2},
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_checkpoint_is_what_torch_loads(protocol: int, old: bool, tmp_path: Path) -> None:
    value = checkpoint()
    if old:
        del value["new types"]  # torch itself cannot load these from the old format
    path = saved(value, tmp_path / "c.pth", old=old, protocol=protocol)
    expected = torch.load(path, weights_only=False)
    assert equal(unpickle.load(path), expected)


def test_a_tensor_in_the_middle_of_the_file_is_where_it_is(tmp_path: Path) -> None:
    """Tensors are views of the mapped file; an offset that is lost would give the first bytes for each."""
    path = saved([torch.full((5,), float(k)) for k in range(4)], tmp_path / "c.pth")
    assert [tensor.tolist() for tensor in unpickle.load(path)] == [[float(k)] * 5 for k in range(4)]


def test_a_loaded_tensor_can_be_changed_without_changing_the_file(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(1000)}, tmp_path / "c.pth")
    before = path.read_bytes()
    unpickle.load(path)["w"].fill_(1)
    assert path.read_bytes() == before


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.x = 3


class Bag(dict[str, int]):
    """As omegaconf's, easydict's and Lightning's dictionaries."""


class Row(list[int]):
    pass


def test_other_objects_beside_the_weights_are_stubs(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=0.1, arch="vgg16"),
        "path": pathlib.PurePosixPath("a/b"),
        "date": datetime.date(2020, 1, 2),
        "colour": Colour.RED,
        "inner": Outer.Inner(),
        "bag": Bag(a=1),
        "row": Row([1, 2]),
        "history": collections.defaultdict(list, loss=[0.5]),
        "counts": collections.Counter("aab"),
        "relu": torch.relu,
        "array": numpy.arange(3.0),
        "scalars": [numpy.float64(93.1), numpy.float32(0.5), numpy.int64(-7), numpy.bool_(True)],
        "device": torch.device("cpu"),
        "dtype": torch.float32,
    }
    found = unpickle.load(saved(beside, tmp_path / "c.pth"))
    # Python's versions write it in two ways: as the class with a value, or as an attribute of the class
    colour = found.pop("colour")
    assert isinstance(colour, Stub | Global)
    assert "Colour" in colour.name
    assert {key: value.name for key, value in found.items() if isinstance(value, Stub)} == {
        "args": "argparse.Namespace",
        "path": "pathlib.PurePosixPath",
        "date": "datetime.date",
        "inner": f"{HERE}.Outer.Inner",
        "bag": f"{HERE}.Bag",
        "row": f"{HERE}.Row",
        "array": "numpy._core.multiarray._reconstruct",
        "device": "torch.device",
    }
    assert found["args"].attributes == {"lr": 0.1, "arch": "vgg16"}
    assert (found["inner"].attributes, found["bag"].entries, found["row"].items) == (
        {"x": 3},
        {"a": 1},
        [1, 2],
    )
    assert (found["history"], found["counts"]) == ({"loss": [0.5]}, {"a": 2, "b": 1})
    assert found["relu"] == Global("torch._C._VariableFunctions", "relu") or isinstance(
        found["relu"], Global | Stub
    )
    assert found["scalars"] == [93.1, 0.5, -7, True]
    assert [type(value) for value in found["scalars"]] == [float, float, int, bool]
    assert found["dtype"] == Global("torch", "float32")
    assert repr(found["args"]) == "<argparse.Namespace>"


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_of_every_protocol_are_read(protocol: int) -> None:
    value = {
        "text": "ä\n\u65e5",
        "bytes": b"\0\xff",
        "array": bytearray(b"abc"),
        "numbers": [0, 1, -1, 255, 65536, -(2**31), 2**40, -(2**200), 0.5, -1e300],
        "flags": [True, False, None],
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [{1, 2}, frozenset({3})],
        "nested": {"a": {"b": [{"c": ()}]}},
    }
    builders = unpickle._builders()
    machine = pickle_machine.Machine(builders, lambda _: None)
    assert machine.run(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_a_value_that_holds_itself_is_read(tmp_path: Path) -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    found = unpickle.load(saved({"loop": loop}, tmp_path / "c.pth"))
    assert found["loop"][1] is found["loop"]


# What files may try


class Payload:
    """Unpickled by Python it calls a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class SetState:
    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}

    def __setstate__(self, _: object) -> None:
        Path(CANARY).touch()


TOUCH = f"open({CANARY!r}, 'w').close()"
HOSTILE = [
    (Payload(os.system, f"touch {CANARY}"), f"{os.system.__module__}.system"),
    (Payload(subprocess.Popen, ["touch", CANARY]), "subprocess.Popen"),
    (Payload(subprocess.check_output, ["touch", CANARY]), "subprocess.check_output"),
    (Payload(eval, TOUCH), "builtins.eval"),
    (Payload(exec, TOUCH), "builtins.exec"),
    (Payload(open, CANARY, "w"), "open"),
    (Payload(__import__, "antigravity"), "builtins.__import__"),
    (Payload(importlib.import_module, "antigravity"), "importlib.import_module"),
    (Payload(pickle.loads, pickle.dumps(Payload(eval, TOUCH))), "loads"),
    (Payload(functools.partial, os.system, f"touch {CANARY}"), f"{os.system.__module__}.system"),
    (Payload(functools.partial(eval, TOUCH)), "builtins.eval"),
    (Payload(setattr, Colour, "RED", 2), "builtins.setattr"),
    (Payload(torch.load, CANARY), "torch.serialization.load"),
    (Payload(torch.hub.load, "a/b", "c"), "torch.hub.load"),
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("payload", "name"), HOSTILE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_call_that_runs_programs_is_refused_and_does_not_run(
    payload: Payload, name: str, protocol: int, old: bool, tmp_path: Path
) -> None:
    path = saved(
        {"state_dict": {"w": torch.ones(2)}, "x": payload}, tmp_path / "c.pth", old=old, protocol=protocol
    )
    said = refusal(path)
    assert name in said
    assert "which a checkpoint has no use for: do not open it with torch.load" in said


@pytest.mark.parametrize("protocol", range(6))
def test_os_system_in_a_bare_pickle_of_every_protocol_is_named(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(pickle.dumps(Payload(os.system, f"touch {CANARY}"), protocol))
    assert f"holds {os.system.__module__}.system, which a checkpoint has no use for" in refusal(path)
    path.write_bytes(pickle.dumps({"w": 1}, protocol))
    assert "is a pickle that torch.save did not write; expected" in refusal(path)


def test_a_plain_pickle_of_tensors_is_no_attack_and_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(pickle.dumps({"0.weight": torch.ones(2)}))
    assert "is a plain Python pickle of tensors, each of which would run torch.load inside" in refusal(path)
    path.write_bytes(pickle.dumps([torch.ones(2), Payload(os.system, f"touch {CANARY}")]))
    assert "torch.storage._load_from_bytes, which a checkpoint has no use for" in refusal(path)


# pickles by hand, of steps that Python's own pickler does not write
RAW = [
    b"cos\nsystem\n(S'touch canary.txt'\ntR.",
    b"(S'touch canary.txt'\nios\nsystem\n.",
    b"(cos\nsystem\nS'touch canary.txt'\no.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x10touch canary.txt\x85R.",
    b"\x80\x02c__builtin__\neval\n(S'1'\ntR.",
    b"\x80\x02ccommands\ngetoutput\n(S'touch canary.txt'\ntR.",
    b"\x80\x04\x8c\x13torch.serialization\x8c\x09os.system\x93\x8c\x10touch canary.txt\x85R.",
    b"\x80\x02c__builtin__\ngetattr\n(ctorch.serialization\nos\nS'system'\ntR(S'touch canary.txt'\ntR.",
    b"\x80\x02cos\nsystem\n(S'touch canary.txt'\ntR",  # damaged behind it
    b"\x80\x02cos\nsystem\nq\x00.",
    b"\x80\x02csubprocess\nPopen\n)\x81.",
    b"\x80\x02(dcos\nsystem\nb.",
]


@pytest.mark.parametrize("pickled", RAW)
def test_names_of_programs_are_found_whatever_step_names_them(pickled: bytes, tmp_path: Path) -> None:
    assert "which a checkpoint has no use for" in refusal(archive(tmp_path / "c.pth", pickled))


INERT = [
    Payload(print, "code ran"),
    Payload(Path(CANARY).touch),
    Payload(getattr, Path(CANARY), "touch"),
    Payload(functools.partial, Path(CANARY).touch),
    Payload(functools.reduce, Path.touch, [Path(CANARY)]),
    Payload(map, Path.touch, [Path(CANARY)]),
    Payload(copyreg._reconstructor, Path, object, CANARY),  # type: ignore[attr-defined]
    Payload(type, "X", (), {"__setstate__": print}),
    Payload(torch._utils._rebuild_parameter, Payload(print, "code ran"), False, collections.OrderedDict()),
    Payload(torch._tensor._rebuild_from_type_v2, print, torch.Tensor, ("code ran",), {}),
    Payload(numpy.frombuffer, b"abcd"),
    SetState(),
]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("payload", INERT, ids=range(len(INERT)))
def test_other_calls_stay_inert(
    payload: object, old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = unpickle.load(saved({"x": payload, "w": torch.ones(2)}, tmp_path / "c.pth", old=old))
    assert found["w"].tolist() == [1, 1]
    assert isinstance(found["x"], Stub | Global)
    assert capsys.readouterr().out == ""


def test_the_canary_shows_what_runs(tmp_path: Path) -> None:
    """Python's own unpickler runs the payloads of these tests."""
    for payload in (HOSTILE[0][0], HOSTILE[3][0], INERT[1], INERT[-1]):
        torch.load(saved({"x": payload}, tmp_path / "c.pth"), weights_only=False)
        assert (tmp_path / CANARY).exists()
        (tmp_path / CANARY).unlink()


class Hooked(nn.Module):
    """Payloads wherever a module can hold one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 2)
        self.act = functools.partial(print, "code ran")
        self.conv.register_forward_hook(Payload(print, "code ran"))  # type: ignore[arg-type]
        self.fc.register_forward_pre_hook(print)
        self.nested = pickle.dumps(Payload(os.system, f"touch {CANARY}"))
        self.objects = numpy.array([Payload(print, "code ran")], dtype=object)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(CANARY).touch()
        self.__dict__.update(state)


@pytest.mark.parametrize("old", [False, True])
def test_a_module_with_payloads_is_read_without_running_them(
    old: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Hooked()
    stub = unpickle.load(saved(network, tmp_path / "c.pth", old=old))
    found = module_trees.read_module(stub, tmp_path / "c.pth")
    assert found.network.tensors["fc1.weight"].equal(network.fc.weight)
    assert capsys.readouterr().out == ""


def test_the_class_of_a_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trapped.py").write_text(
        textwrap.dedent(f"""
        import os
        from torch import nn
        if os.environ.get("ARMED"):
            {TOUCH}
        class Net(nn.Sequential):
            pass
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    trapped = importlib.import_module("trapped")
    network = trapped.Net(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    path = saved(network, tmp_path / "c.pth")
    del sys.modules["trapped"]
    monkeypatch.setenv("ARMED", "1")
    stub = unpickle.load(path)
    assert stub.name == "trapped.Net"
    assert module_trees.read_module(stub, path).network.tensors["fc1.weight"].equal(network[3].weight)
    assert "trapped" not in sys.modules


def test_stubs_are_not_changed_by_what_they_are_told(tmp_path: Path) -> None:
    """State with the names of special methods stays data, and nothing stays for the next file."""
    before = {name: value for name, value in vars(Stub).items() if callable(value)}
    # an object of a class of its own, built with a dictionary and with slots
    state = b"(dS'__class__'\nS'x'\nsS'__getattr__'\nS'x'\nsS'attributes'\nS'x'\ns"
    found = unpickle.load(archive(tmp_path / "c.pth", b"\x80\x02cmine\nThing\n)\x81" + state + b"b."))
    assert (type(found), found.attributes["__class__"]) == (Stub, "x")
    # the class itself, a function of torch and a dictionary, built with slots
    for named in (
        b"cmine\nThing\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n)R",
        b"ctorch\nSize\n",
    ):
        unpickle.load(
            archive(tmp_path / "c.pth", b"\x80\x02" + named + b"(dS'a'\nK\x01s(dS'__call__'\nK\x02s\x86b.")
        )
    assert {name: value for name, value in vars(Stub).items() if callable(value)} == before
    assert not hasattr(torch._utils._rebuild_tensor_v2, "a")
    assert unpickle.load(saved(collections.OrderedDict(a=1), tmp_path / "d.pth")) == {"a": 1}


def test_what_is_loaded_has_no_class_of_the_file() -> None:
    """The functions that a file can call are those of one table, and all are our own."""
    for name, function in unpickle._builders().items():
        assert function.__module__ == unpickle.__name__, name


# Absurd and damaged files


def tensor(
    storage: bytes, size: bytes, stride: bytes, offset: int = 0, key: bytes = b"0", count: int = 4
) -> bytes:
    """The pickle of one tensor."""
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n"
        + storage
        + b"\nS'"
        + key
        + b"'\nS'cpu'\nI"
        + str(count).encode()
        + b"\ntQI"
        + str(offset).encode()
        + b"\n("
        + size
        + b"t("
        + stride
        + b"tI00\n}tR."
    )


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        (tensor(b"FloatStorage", b"I5\n", b"I1\n"), "a tensor lies outside its storage"),
        (tensor(b"FloatStorage", b"I2\n", b"I1\n", offset=3), "a tensor lies outside its storage"),
        (tensor(b"FloatStorage", b"I-1\n", b"I1\n"), "a tensor has no proper shape"),
        (tensor(b"FloatStorage", b"I2\n", b"I-1\n", offset=3), "a tensor has no proper shape"),
        (tensor(b"FloatStorage", b"I2\nI2\n", b"I1\n"), "a tensor has no proper shape"),
        (tensor(b"FloatStorage", b"S'a'\n", b"I1\n"), "a tensor has no proper shape"),
        (
            tensor(b"FloatStorage", b"I4\n", b"I1\n", count=1000),
            "its member data/0 is shorter than the tensors in it",
        ),
        (tensor(b"FloatStorage", b"I4\n", b"I1\n", count=10**15), "its member data/0 is shorter"),
        (tensor(b"FloatStorage", b"I4\n", b"I1\n", key=b"9"), "its member data/9 is missing"),
        (tensor(b"FloatStorage", b"I4\n", b"I1\n", key=b"../../../etc/passwd"), "is missing"),
        (b"\x80\x02(S'weird'\nK\x01tQ.", "it refers to something that is no storage"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02K\x01K\x02a.", "it appends to a int"),
        (b"\x80\x02](K\x01u.", "a key has no value"),
        (b"\x80\x02K\x01K\x02K\x03s.", "it sets an entry of a int"),
        (b"\x80\x02}]K\x01s.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02\x82\x01.", "damaged"),  # an extension code
        (b"\x80\x09N.", "protocol 9"),
        (b"\x80\x02\x8b" + struct.pack("<i", 2000) + b"\x01" * 2000 + b".", "an integer of 15993 bits"),
        (b"\x80\x02" + b"\x85".join([b"K\x01", *[b""] * 400]) + b".", "deep"),
        (b"\x80\x02K\x01" + b"2\x86" * 60 + b".", "unfolds to more than"),
        (b"\x80\x02ctorch\nSize\n(I1\n" + b"I1\n" * 10 + b"tR.", "damaged"),
        (b"not a pickle", "damaged"),
        (b"", "damaged"),
    ],
)
def test_damaged_and_absurd_pickles_are_refused(pickled: bytes, words: str, tmp_path: Path) -> None:
    said = refusal(archive(tmp_path / "c.pth", pickled, _0=struct.pack("<4f", 1, 2, 3, 4)))
    assert words in said
    assert said.startswith(str(tmp_path / "c.pth"))


def test_the_pickle_of_one_tensor_is_right_where_it_is_not_damaged(tmp_path: Path) -> None:
    pickled = tensor(b"FloatStorage", b"I2\nI1\n", b"I2\nI1\n", offset=1)
    found = unpickle.load(archive(tmp_path / "c.pth", pickled, _0=struct.pack("<4f", 1, 2, 3, 4)))
    assert found.tolist() == [[2], [4]]
    # one number repeated a million million times takes no memory in the file
    pickled = tensor(b"FloatStorage", b"I1000000\nI1000000\n", b"I0\nI0\n")
    assert isinstance(unpickle.load(archive(tmp_path / "c.pth", pickled, _0=bytes(16))), Stub)


def test_copies_of_copies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MOST_COPIED_BYTES", 100_000)
    copy = b"c__builtin__\nlist\nh\x00\x85R0"
    pickled = b"\x80\x02](" + b"K\x01" * 1000 + b"eq\x00" + copy * 50 + b"."
    assert "copies the same values over and over" in refusal(archive(tmp_path / "c.pth", pickled))


def test_many_steps_and_many_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_machine, "MOST_OPCODES", 100)
    assert "more than 100 steps" in refusal(archive(tmp_path / "c.pth", b"\x80\x02" + b"N0" * 200 + b"N."))
    monkeypatch.setattr(pickle_machine, "MOST_NAMES", 10)
    names = b"".join(b"ca\nb%d\n0" % k for k in range(20))
    assert "names more than 10 classes" in refusal(archive(tmp_path / "c.pth", b"\x80\x02" + names + b"N."))


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "LONGEST_PICKLE_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 5_000_000 + b"N.")
    monkeypatch.setattr(pickle_machine, "MOST_OPCODES", 10**9)
    assert "is not a PyTorch checkpoint or is truncated" in refusal(tmp_path / "c.pth")
    with zipfile.ZipFile(tmp_path / "d.pth", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", tensor(b"FloatStorage", b"I4\n", b"I1\n", count=10**6))
        made.writestr("x/data/0", bytes(4 * 10**6))
    assert "its member data/0 is missing, compressed or encrypted" in refusal(tmp_path / "d.pth")


@pytest.mark.parametrize("old", [False, True])
def test_truncated_files_are_refused(old: bool, tmp_path: Path) -> None:
    path = saved(checkpoint(), tmp_path / "c.pth", old=old)
    whole = path.read_bytes()
    for end in [*range(1, len(whole) - 1, len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:end])
        assert "is not a PyTorch checkpoint or is truncated: fetch it again" in refusal(path)


@pytest.mark.parametrize("old", [False, True])
def test_changed_bytes_never_give_another_kind_of_error(old: bool, tmp_path: Path) -> None:
    path = saved(
        {"state_dict": nn.Linear(3, 2).state_dict(), "args": argparse.Namespace(a=1)},
        tmp_path / "c.pth",
        old=old,
    )
    whole = path.read_bytes()
    generator = numpy.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        changed = bytearray(whole)
        for place in generator.integers(0, min(len(whole), 1200), 3):
            changed[place] = generator.integers(0, 256)
        path.write_bytes(changed)
        try:
            unpickle.load(path)
            outcomes.add("read")
        except CheckpointError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "c.pth", b"\x80\x02}.")
    assert unpickle.load(path) == {}
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/data.pkl", b"\x80\x02}.")
        made.writestr("x/byteorder", b"big")
    assert "big-endian" in refusal(path)


def test_an_old_file_whose_storages_are_not_those_of_its_tensors_is_refused(tmp_path: Path) -> None:
    path = saved([torch.ones(3)], tmp_path / "c.pth", old=True)
    whole = bytearray(path.read_bytes())
    place = len(whole) - 3 * 4 - 8
    assert struct.unpack_from("<q", whole, place) == (3,)
    struct.pack_into("<q", whole, place, 2)
    path.write_bytes(whole)
    assert "one of its storages has 2 elements, its tensors ask for 3" in refusal(path)


@pytest.mark.parametrize(
    ("module", "name", "hostile"),
    [
        ("os", "system", True),
        ("torch.serialization", "os.system", True),
        ("torch.serialization", "os", True),
        ("builtins", "eval", True),
        ("builtins", "print", False),
        ("builtins", "getattr", False),
        ("torch.hub", "load", True),
        ("torch.nn.modules.conv", "Conv2d", False),
        ("code.model", "VGG", False),  # a user's own folder
        ("osmnx", "Graph", False),
        ("__main__", "Net", False),
        ("pathlib", "PosixPath", False),
    ],
)
def test_which_names_have_no_use_in_a_checkpoint(module: str, name: str, hostile: bool) -> None:
    assert is_hostile(module, name) == hostile


def test_every_step_of_pickle_is_known_or_refused() -> None:
    """The steps that are left out look code up in a registry or read data from elsewhere."""
    known = set(pickle_machine.Machine({}, lambda _: None)._steps) | {"STOP"}
    assert {opcode.name for opcode in pickletools.opcodes} - known == {
        *("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
    }


MAGIC = 0x1950A86A20F9469CFC6C
HEAD = (1001, {"little_endian": True})


def pickles(path: Path, *values: object) -> Path:
    """The old format's pickles, one after the other, with values of one's own."""
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in values))
    return path


@pytest.mark.parametrize("first", [torch.ones(2), torch.ones(()), "text", [], 5, True, None], ids=str)
def test_the_head_of_the_old_format_is_a_number_and_nothing_else(first: object, tmp_path: Path) -> None:
    """A tensor cannot even be compared with the magic number."""
    path = tmp_path / "c.pth"
    torch.save(first, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[whole.index(b"\x80\x02", whole.index(b"little_endian")) :])
    assert "is a pickle that torch.save did not write" in refusal(path)


@pytest.mark.parametrize(
    "values",
    [
        (MAGIC, torch.Size([1001]), HEAD[1], {}, []),
        (MAGIC, 1001.5, HEAD[1], {}, []),
        (MAGIC, *HEAD, {}, [[]]),
        (MAGIC, *HEAD, {}, [{}]),
        (MAGIC, *HEAD, {}, [1]),
        (MAGIC, *HEAD, {}, {"0": 1}),
        (MAGIC, *HEAD, {}, None),
        (MAGIC, 1001, {"little_endian": False}, {}, []),
        (MAGIC, 1001, [], {}, []),
    ],
    ids=repr,
)
def test_odd_values_between_the_pickles_are_refused(values: tuple[object, ...], tmp_path: Path) -> None:
    refusal(pickles(tmp_path / "c.pth", *values))


def test_an_empty_file_of_the_old_format_is_read(tmp_path: Path) -> None:
    assert unpickle.load(pickles(tmp_path / "c.pth", MAGIC, *HEAD, {"a": 1}, [])) == {"a": 1}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (2_100_000,)], ids=str)
def test_a_tensor_alone_is_read(shape: tuple[int, ...], old: bool, tmp_path: Path) -> None:
    """A loss that somebody saved; its length is no number of values that hold others."""
    tensor = torch.zeros(shape, dtype=torch.uint8)
    found = unpickle.load(saved(tensor, tmp_path / "c.pth", old=old))
    assert found.shape == tensor.shape
    assert torch.equal(found, tensor)
