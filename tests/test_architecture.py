"""The rules of the house, read off the source."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, command_environment

from vgg_export.core import sources
from vgg_runtime.bundle import input_spec

SOURCES = {
    "vgg_export": ROOT / "export/vgg_export",
    "vgg_calibration": ROOT / "calibration/vgg_calibration",
    "vgg_runtime": ROOT / "runtime/vgg_runtime",
}
# What a package may import of the others.
BELOW = {
    "vgg_export": {"vgg_calibration", "vgg_runtime"},
    "vgg_calibration": {"vgg_runtime"},
    "vgg_runtime": set(),
}
# From the lowest floor to the highest: wings and modules; one imports only what is on a lower floor. The
# package itself is "".
FLOORS = {
    "vgg_runtime": (
        {"", "errors", "records"},
        {"result"},
        {"text"},
        {"addresses", "output"},
        {"board"},
        {"bundle"},
        {"console"},
        {"measure"},
        {"report"},
        {"web", "live", "doctor", "classify"},
        {"compare"},
    ),
    "vgg_calibration": ({""}, {"choose", "chain", "reader"}, {"observe"}, {"moments"}),
    "vgg_export": (
        {""},
        {"core"},
        {"options", "terminal"},
        {"network", "deploy"},
        {"data", "graphs"},
        {"compress", "int8", "bundle"},
        {"inputs", "builds"},
        {"recipes"},
        {"search"},
        {"pipeline", "by_hand", "command_options"},
        {"demo_commands"},
        {"cli"},
        {"launch"},
        {"__main__"},
    ),
}
TORCH = {"torch", "torchvision"}
# Where torch is imported, within functions or for types; nowhere else in the exporter.
WITH_TORCH = ("network", "data", "compress")
AND_HERE = {
    "vgg_export.graphs.export",
    "vgg_export.core.devices",
    "vgg_export.core.processes",
    "vgg_export.core.threads",
}
# What scripts import from a package itself, which loads it when it is asked for.
FACE = {"vgg_runtime": {"vgg_runtime.classify.classifier"}}
OPTIONAL = {
    "vgg_runtime.web.http_server": {"uvicorn"},
    "vgg_runtime.live.sources": {"picamera2"},
    "vgg_runtime.live.mqtt": {"paho"},
}


@functools.cache
def modules() -> Mapping[str, Path]:
    """Every module of the three packages, by its dotted name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [part for part in path.relative_to(folder).with_suffix("").parts if part != "__init__"]
            found[".".join((package, *parts))] = path
    return found


def imports(name: str, path: Path) -> Iterator[str]:
    """Every module that a module imports anywhere, absolute; ``from . import a`` in vgg_export.core is
    vgg_export.core.a."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return sources.imported(ast.parse(path.read_text(encoding="utf-8")), package)


def own(name: str, path: Path) -> set[str]:
    """The modules of the project among them; a package that only leads to one of its modules is not meant."""
    found = [imported for imported in imports(name, path) if imported in modules() and imported != name]
    leads = {imported for imported in found if any(other.startswith(f"{imported}.") for other in found)}
    return set(found) - leads - FACE.get(name, set())


def top(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def wing(name: str) -> str:
    return [*name.split("."), ""][1]


def floor(name: str) -> int:
    package = name.split(".")[0]
    return next(k for k, wings in enumerate(FLOORS[package]) if wing(name) in wings)


def upward(name: str, imported: str) -> bool:
    """Whether an import leaves its wing for another one that is not on a lower floor."""
    package, other = name.split(".")[0], imported.split(".")[0]
    if package != other:
        return other not in BELOW[package]
    return wing(name) != wing(imported) and floor(imported) >= floor(name)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first of them at both ends; empty without one."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next(filter(None, (visit(other, [*way, name]) for other in sorted(graph[name]))), [])
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in sorted(graph))), [])


def of(package: str) -> list[str]:
    return [name for name in modules() if name.split(".")[0] == package]


def test_what_the_rules_name_exists() -> None:
    """A rule about something that was renamed holds for nothing."""
    assert {wing(name) for name in of("vgg_export")} >= {*WITH_TORCH, "deploy"}
    assert modules().keys() >= {*OPTIONAL, *ELSEWHERE, *AND_HERE, *FACE, *set().union(*FACE.values())}


def test_every_module_has_its_floor() -> None:
    for package, floors in FLOORS.items():
        named = [name for wings in floors for name in wings]
        assert sorted(named) == sorted({wing(name) for name in of(package)})


@pytest.mark.parametrize("name", modules())
def test_a_wing_imports_only_wings_on_lower_floors(name: str) -> None:
    assert [imported for imported in sorted(own(name, modules()[name])) if upward(name, imported)] == []


def test_nothing_imports_in_a_circle() -> None:
    assert circle({name: own(name, path) for name, path in modules().items()}) == []


@pytest.mark.parametrize(
    ("name", "line", "wrong"),
    [
        ("vgg_export.core.bad", "from vgg_export.network import chain", True),
        ("vgg_export.core.bad", "def f():\n    from vgg_export.network.chain import Chain", True),
        ("vgg_export.core.bad", "from ..network import chain", True),
        ("vgg_export.data.bad", "from vgg_export.graphs import audit", True),
        ("vgg_export.data.bad", "import vgg_export.cli", True),
        ("vgg_export.data.bad", "from vgg_export.network.chain import Chain", False),
        ("vgg_export.data.bad", "from . import splits", False),
        ("vgg_runtime.board.bad", "from vgg_runtime.measure import remedies", True),
        ("vgg_runtime.live.bad", "from vgg_runtime.web import app", True),
        ("vgg_runtime.live.bad", "from vgg_runtime.bundle import manifest", False),
        ("vgg_runtime.live.bad", "from vgg_export.core import files", True),
        ("vgg_calibration.bad", "from vgg_export.core import files", True),
    ],
)
def test_the_rule_of_floors_can_fail(name: str, line: str, wrong: bool, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(line + "\n")
    found = own(name, bad)
    assert found
    assert any(upward(name, imported) for imported in found) == wrong


def test_the_rule_of_circles_can_fail() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("name", [*of("vgg_runtime"), "compare", "classify", "_start"])
def test_the_runtime_imports_only_what_a_board_has(name: str) -> None:
    path = modules().get(name, ROOT / f"runtime/{name}.py")
    allowed = set(sys.stdlib_module_names) | {"numpy", "PIL", "onnxruntime", "vgg_runtime", "_start"}
    assert top(imports(name, path)) - allowed <= OPTIONAL.get(name, set())


def test_the_optional_packages_are_not_needed_to_import_anything() -> None:
    named = ", ".join(name for name in of("vgg_runtime"))
    missing = " = ".join(f"sys.modules[{name!r}]" for name in ("uvicorn", "picamera2", "paho"))
    code = f"import sys; {missing} = None; import {named}"
    subprocess.run([sys.executable, "-c", code], env=command_environment(), check=True)


@pytest.mark.parametrize("name", of("vgg_calibration"))
def test_calibration_knows_the_runtime_but_not_the_exporter(name: str) -> None:
    assert not top(imports(name, modules()[name])) & {*TORCH, "vgg_export", "click"}


@pytest.mark.parametrize(
    "name", [n for n in of("vgg_export") if wing(n) not in WITH_TORCH and n not in AND_HERE]
)
def test_these_do_not_import_torch(name: str) -> None:
    assert not top(imports(name, modules()[name])) & TORCH


def is_step(source: str) -> bool:
    """Whether a module has a function ``run`` that gives an artifact."""
    runs = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "run"]
    returned = [ast.unparse(run.returns).split(".")[-1] for run in runs if run.returns is not None]
    return any(name in ("Artifact", "Manifest") for name in returned)


def steps() -> list[str]:
    """The modules of steps, wherever they are below a wing."""
    names = [name for name in of("vgg_export") if name.count(".") > 1]
    return [name for name in names if is_step(modules()[name].read_text(encoding="utf-8"))]


def not_for_a_step(name: str, path: Path) -> set[str]:
    """What a step imports and must not: other steps, and what puts steps together."""
    return own(name, path) & ({*steps(), "vgg_export.pipeline", "vgg_export.cli"} - {name})


def test_the_steps_are_found() -> None:
    assert {name.rpartition(".")[2] for name in steps()} >= {
        "prune",
        "factorise",
        "distil",
        "quantize",
        "writer",
    }


@pytest.mark.parametrize("name", steps())
def test_a_step_does_not_import_another_step(name: str) -> None:
    assert not_for_a_step(name, modules()[name]) == set()


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from . import prune\ndef run(x) -> cache.Artifact: ...", True),
        ("def run(x) -> Artifact:\n    from vgg_export.int8.quantize import run", True),
        ("from vgg_export.pipeline import RECIPES\ndef run(x) -> Manifest: ...", True),
        ("from . import least_squares\ndef run(x) -> cache.Artifact: ...", False),
    ],
)
def test_the_rule_of_steps_can_fail(source: str, wrong: bool, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(source)
    assert is_step(source)
    assert bool(not_for_a_step("vgg_export.compress.bad", tmp_path / "bad.py")) == wrong


@pytest.mark.parametrize("source", ["def run(x) -> int: ...", "def run(x): ...", "def go() -> Artifact: ..."])
def test_what_gives_no_artifact_is_no_step(source: str) -> None:
    assert not is_step(source)


COMMAND_LINE = {
    f"vgg_export.{name}" for name in ("cli", "command_options", "demo_commands", "launch", "terminal")
}


@pytest.mark.parametrize("name", of("vgg_export"))
def test_only_the_command_line_uses_click_or_prints(name: str) -> None:
    if name in COMMAND_LINE:
        return
    assert "click" not in top(imports(name, modules()[name]))
    tree = ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8")))
    calls = [n.func.id for n in tree if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in calls
    assert "exit" not in calls


def test_what_is_sent_to_a_board_as_text_needs_nothing_there() -> None:
    name = "vgg_export.deploy.on_board"
    assert top(imports(name, modules()[name])) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", [name for name in of("vgg_export") if wing(name) == "deploy"])
def test_deploying_takes_no_onnx(name: str) -> None:
    assert not top(imports(name, modules()[name])) & {"onnx"}


# What is done to pictures elsewhere, and is no second preprocessing.
ELSEWHERE = {
    "vgg_calibration.observe": {"255"},  # the steps of an int8 scale
    "vgg_export.data.demo_training": {"resize"},  # random crops become pictures of a size, as augmentation
    "vgg_export.data.signs": {"resize"},  # the background of a drawing
    "vgg_export.network.readers.state_dicts": {"255"},  # the mean of VGG-Face, which a file does not say
    "vgg_export.network.readers.torch_inputs": {"mean"},  # the input that is assumed
    "vgg_runtime.report.page": {"resize"},  # thumbnails, to be looked at
}


def preparations(source: str) -> set[str]:
    """What a module does that makes pictures ready: ImageNet's mean and standard deviation by name or value,
    bytes to or from 0..1, and resizing, by whichever library."""
    values = {*input_spec.IMAGENET_MEAN, *input_spec.IMAGENET_STD}
    values |= {255 * value for value in values}
    resizing = {"resize", "thumbnail", "reduce", "interpolate", "Resize", "RandomResizedCrop", "CenterCrop"}
    resizing |= {"fit", "contain"} if "ImageOps" in source else set()  # of Pillow
    found = set()
    for node in ast.walk(ast.parse(source)):
        name = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name"}.get(type(node))
        called = getattr(node, name) if name else ""
        if called in ("IMAGENET_MEAN", "IMAGENET_STD", "Normalize"):
            found.add("mean")
        if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value in values:
            found.add("mean")
        if 255 in [n.value for factor in factors(node) for n in constants(factor)]:
            found.add("255")
        if called in ("to_tensor", "ToTensor", "pil_to_tensor") and "torchvision" in source:
            found.add("255")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            found |= {"resize"} if called in resizing else set()
            of_text = ast.unparse(node.func) == "unicodedata.normalize"
            found |= {"mean"} if called == "normalize" and not of_text else set()
    return found


def factors(node: ast.AST) -> list[ast.expr]:
    """What is multiplied or divided here, by an operator or by numpy's or torch's functions."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Mult):
        return [node.left, node.right]
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div | ast.Mult):
        return [node.value]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        named = node.func.attr in ("divide", "true_divide", "multiply", "div", "mul", "div_", "mul_")
        return node.args if named else []
    return []


def constants(side: ast.expr) -> list[ast.Constant]:
    """A factor, or what is given to the call that it is: 255, np.float32(255)."""
    return [
        n for n in [side, *(side.args if isinstance(side, ast.Call) else ())] if isinstance(n, ast.Constant)
    ]


def test_preprocessing_exists_once() -> None:
    found = {name: preparations(path.read_text(encoding="utf-8")) for name, path in modules().items()}
    assert found.pop("vgg_runtime.bundle.preprocess") == {"255", "resize"}
    assert found.pop("vgg_runtime.bundle.input_spec") == {"mean", "255"}
    assert {name: kinds for name, kinds in found.items() if kinds} == ELSEWHERE


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        # what the training of the demo once did
        ("mean, std = (torch.tensor(v) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))", {"mean", "255"}),
        ('x = torch.nn.functional.interpolate(x, (64, 64), mode="bilinear", antialias=True)', {"resize"}),
        ("from vgg_runtime.bundle.preprocess import IMAGENET_STD as deviation", {"mean"}),
        ("x = (x - preprocess.IMAGENET_MEAN[0])", {"mean"}),
        ("x = (x - 0.485) / 0.229", {"mean"}),
        ("x = x / 255", {"255"}),
        ("x = np.asarray(image) / np.float32(255)", {"255"}),
        ("x /= 255", {"255"}),
        ("x = np.divide(x, 255)", {"255"}),
        ("x = x - [123.675, 116.28, 103.53]", {"mean"}),
        ("x = ImageOps.fit(image, (64, 64))", {"resize"}),
        ("x = image.resize((64, 64))", {"resize"}),
        ("from torchvision.transforms import Normalize", {"mean"}),
        ("x = torchvision.transforms.functional.normalize(x, mean, std)", {"mean"}),
        ("told = options.normalize", set()),
        ("x = torchvision.transforms.Resize(64)(image)", {"resize"}),
        ("x = torchvision.transforms.functional.to_tensor(image)", {"255"}),
        ("x = to_tensor(image, for_input(64))", set()),
        ("x = VGG19_Weights.IMAGENET1K_V1", set()),
        ("x = unicodedata.normalize('NFC', x)", set()),
        ("x = array.reshape(255, 3)", set()),
    ],
)
def test_a_second_preprocessing_is_seen(line: str, kinds: set[str]) -> None:
    assert preparations(line) == kinds


def test_these_checks_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import torch.nn\n    from . import prune\n    from .fold import x\n")
    assert set(imports("vgg_runtime.board.bad", bad)) == {
        "torch.nn",
        "vgg_runtime.board",
        "vgg_runtime.board.prune",
        "vgg_runtime.board.fold",
        "vgg_runtime.board.fold.x",
    }


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.argv=['vgg-export','--help'];"
        " from vgg_export.cli import main; main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "quantize" in done.stdout
