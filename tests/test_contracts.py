"""The JSON documents of the device are those that the documentation describes, key by key at every depth:
real documents, made by compare.py, are held against its blocks in both directions."""

import copy
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import documentation, reseal
from launch import QUICK, compare

from vgg_export import recipes
from vgg_export.core import cache

OPEN = "…"  # an object whose keys are not part of the contract
TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[{}\[\],:|…]|\d+)')


class Block:
    """What a block of the documentation says: objects are dicts, lists hold the shape of an element,
    ``OPEN`` is any object, a number or a tuple of strings is what may stand there, None is any plain
    value."""

    def __init__(self, text: str) -> None:
        self.tokens = TOKEN.findall(text)
        assert re.sub(r"\s", "", text) == re.sub(r"\s", "", "".join(self.tokens)), (
            "not all of it is understood"
        )
        self.shape = self.value()
        assert self.tokens == []

    def take(self, *expected: str) -> str:
        token: str = self.tokens.pop(0)
        assert not expected or token in expected, (token, expected, self.tokens[:5])
        return token

    def value(self) -> Any:
        token = self.take()
        if token == "{":
            return self.members()
        if token == "[":
            return self.elements()
        if token.isdigit():
            return int(token)
        options = [json.loads(token)]
        while self.tokens[0] == "|":
            self.take("|")
            options.append(json.loads(self.take()))
        return tuple(options)

    def members(self) -> Any:
        if self.tokens[0] == OPEN:
            self.take(OPEN)
            self.take("}")
            return OPEN
        found: dict[str, Any] = {}
        while True:
            key = json.loads(self.take())
            assert key not in found, f"{key} is there twice"
            found[key] = None
            if self.tokens[0] == ":":
                self.take(":")
                found[key] = self.value()
            if self.take(",", "}") == "}":
                return found

    def elements(self) -> Any:
        found = self.value()
        if self.take(",", "]") == ",":
            self.take(OPEN)
            self.take("]")
        return [None if isinstance(found, tuple) else found]  # a sentence stands for any


def differences(shape: Any, found: Any, at: str, seen: set[str]) -> Iterator[str]:
    """Where a document is not what a block says; ``seen``: the objects of the block that were compared."""
    if found is None:
        return
    if isinstance(found, list):
        if shape is not None and not isinstance(shape, list):
            yield f"{at} is a list"
            return
        for element in found:
            yield from differences(shape[0] if shape else None, element, f"{at}[]", seen)
    elif isinstance(found, dict):
        seen.add(at)
        if shape == OPEN:
            return
        documented = shape if isinstance(shape, dict) else {}
        yield from (f"{at}.{key} is not documented" for key in found if key not in documented)
        yield from (f"{at}.{key} does not exist" for key in documented if key not in found)
        for key in documented.keys() & found.keys():
            yield from differences(documented[key], found[key], f"{at}.{key}", seen)
    elif isinstance(shape, dict | list) or shape == OPEN:
        yield f"{at} is a plain value"
    elif shape is not None and found not in (shape if isinstance(shape, tuple) else (shape,)):
        yield f"{at} is {found!r}"


def objects(shape: Any, at: str = "") -> Iterator[str]:
    if isinstance(shape, list):
        yield from objects(shape[0], f"{at}[]")
    elif isinstance(shape, dict) or shape == OPEN:
        yield at
        for key, inner in shape.items() if isinstance(shape, dict) else ():
            yield from objects(inner, f"{at}.{key}")


def wrong(shape: Any, found: Any) -> list[str]:
    """All that is wrong with a document, also that something was never there to be compared."""
    seen = set[str]()
    listed = sorted(set(differences(shape, found, "", seen)))
    return [*listed, *(f"{at} was never compared" for at in objects(shape) if at not in seen)]


def documented(beginning: str) -> Any:
    """The block of the documentation that begins like this, indented, fenced or in the text."""
    (block,) = re.findall(rf"^(?:```\n|`)({re.escape(beginning)}[^`]*)`", documentation(), re.MULTILINE)
    return Block(block).shape


@pytest.fixture(scope="module")
def result(bundle_folder: Path, signs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The document of a comparison in which everything there is has been measured."""
    import shutil

    work = tmp_path_factory.mktemp("contract")
    bundle = Path(shutil.copytree(bundle_folder, work / "artifacts"))
    variants = json.loads((bundle / "manifest.json").read_text())["variants"]
    variants[1]["losses"] = list(losses(bundle_folder.parent))
    reseal(bundle, variants=variants)
    done = compare(
        "--threads",
        "auto",
        "--images",
        signs_folder / "test",
        "--json",
        work / "r.json",
        *QUICK,
        bundle=bundle,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((work / "r.json").read_text())


def losses(work: Path) -> tuple[dict[str, Any], ...]:
    """What the recipe says that quantizing lost; the shared bundle's variants have no recipe."""
    chain = (recipes.QUANTIZE,)
    made = {(): cache.of(work / "baseline.onnx"), chain: cache.of(work / "quantized.onnx")}
    steps: Any = types.SimpleNamespace(make=made.get)
    found = recipes.Steps.losses(steps, chain)
    assert found
    return tuple(loss.to_json() for loss in found)


def test_every_key_of_a_result_is_documented_and_the_other_way_round(result: Any) -> None:
    assert wrong(documented('{"schema": 1, "measured_at",\n "device": {"board"'), result) == []


def test_so_is_every_key_of_a_stream(bundle_folder: Path, signs_folder: Path, tmp_path: Path) -> None:
    asked = ("--source", signs_folder / "val/stop", "--frames", "3", "--json", tmp_path / "l.json")
    done = compare("--live", "baseline", *asked, bundle=bundle_folder)
    assert done.returncode == 0, done.stderr
    shape = documented('{"schema": 1, "measured_at", "device": {…}')
    assert wrong(shape, json.loads((tmp_path / "l.json").read_text())) == []


def test_so_is_every_key_of_the_doctors_findings(bundle_folder: Path, tmp_path: Path) -> None:
    done = compare("--doctor", "--json", tmp_path / "d.json", bundle=bundle_folder)
    assert done.returncode in (0, 1), done.stderr
    shape = documented('{"schema": 1, "examined_at"')
    assert wrong(shape, json.loads((tmp_path / "d.json").read_text())) == []


def test_each_key_that_is_left_out_or_added_at_any_depth_is_seen(result: Any) -> None:
    """Every key of the block in turn is taken out of it, then something is added to every object of the
    document."""
    shape = documented('{"schema": 1, "measured_at",\n "device": {"board"')
    count = 0
    for way in list(keys(shape)):
        less = copy.deepcopy(shape)
        holder = less
        for step in way[:-1]:
            holder = holder[step]
        del holder[way[-1]]
        path = "".join("[]" if step == 0 else f".{step}" for step in way)
        assert f"{path} is not documented" in wrong(less, result)
        holder[way[-1]] = None
        holder["invented"] = None
        parent = path.rpartition(".")[0]
        assert f"{parent}.invented does not exist" in wrong(less, result)
        count += 1
    assert count > 80


def keys(shape: Any) -> Iterator[tuple[str | int, ...]]:
    """Where every key of a block is; 0 is an element of a list."""
    if isinstance(shape, list):
        yield from ((0, *way) for way in keys(shape[0]))
    if isinstance(shape, dict):
        for key, inner in shape.items():
            yield (key,)
            yield from ((key, *way) for way in keys(inner))


@pytest.mark.parametrize(
    ("block", "found", "said"),
    [
        ('{"a": {"b"}}', {"a": None}, [".a was never compared"]),
        ('{"a": [{"b"}]}', {"a": []}, [".a[] was never compared"]),
        ('{"a": [{"b"}]}', {"a": [{"b": 1}, {}]}, [".a[].b does not exist"]),
        ('{"a": {"b"}}', {"a": 1}, [".a is a plain value", ".a was never compared"]),
        ('{"a"}', {"a": {"b": 1}}, [".a.b is not documented"]),
        ('{"a": 1}', {"a": 2}, [".a is 2"]),
        ('{"a": "x" | "y"}', {"a": "z"}, [".a is 'z'"]),
        ('{"a": {…}}', {"a": {"b": 1}}, []),
    ],
)
def test_what_a_block_says_can_be_wrong(block: str, found: Any, said: list[str]) -> None:
    assert wrong(Block(block).shape, found) == said
