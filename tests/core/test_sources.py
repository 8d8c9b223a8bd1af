import dataclasses
import shutil
from pathlib import Path

import pytest

from vgg_export.core import sources

DISTIL = "vgg_export.compress.distil"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the three packages' source."""
    folder = tmp_path_factory.mktemp("source")
    for name, package in sources.installed():
        shutil.copytree(package, folder / name, ignore=lambda at, names: _not_source(Path(at), names))
    return folder


def _not_source(folder: Path, names: list[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file() and not name.endswith(".py")]


def packages(folder: Path) -> sources.Packages:
    return tuple((name, folder / name) for name, _ in sources.installed())


def changes(original: Path, tmp_path: Path, file: str, module: str) -> bool:
    """Whether a comment at the end of a file changes the hash of a module."""
    copy = Path(shutil.copytree(original, tmp_path / "copy"))
    with (copy / file).open("a") as text:
        text.write("# a comment\n")
    return sources.digest(module, packages(original)) != sources.digest(module, packages(copy))


@pytest.mark.parametrize(
    "file",
    [
        "vgg_runtime/report/page.py",
        "vgg_runtime/web/app.py",
        "vgg_runtime/classify/classifier.py",  # the package itself leads there
        "vgg_runtime/measure/tuning.py",
        "vgg_export/cli.py",
        "vgg_export/compress/prune.py",
        "vgg_export/int8/quantize.py",
    ],
)
def test_what_a_stage_does_not_import_leaves_its_hash(original: Path, tmp_path: Path, file: str) -> None:
    assert not changes(original, tmp_path, file, DISTIL)


@pytest.mark.parametrize(
    "file",
    [
        "vgg_export/compress/distil.py",
        "vgg_export/compress/__init__.py",
        "vgg_export/core/cache.py",
        "vgg_export/network/modules.py",
        "vgg_calibration/choose.py",
        "vgg_runtime/bundle/metrics.py",
        "vgg_runtime/bundle/picture_files.py",  # through preprocess
    ],
)
def test_what_a_stage_imports_however_far_changes_its_hash(original: Path, tmp_path: Path, file: str) -> None:
    assert changes(original, tmp_path, file, DISTIL)


def test_every_way_to_import_is_seen(tmp_path: Path) -> None:
    text = {
        "": "",
        "stage": "from .wing import low as other\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from own.types_only import T\n"
        "def f():\n    import own.within.deep\n    from numpy import array\n",
        "types_only": "",
        "apart": "",
        "wing/__init__": "from . import sibling",
        "wing/low": "from .. import above\nfrom ..named import a, b\n",
        "wing/sibling": "",
        "wing/unused": "",
        "above": "from own import stage",
        "named": "",
        "within/__init__": "",
        "within/deep": "from own.wing.low import something",
    }
    for name, content in text.items():
        path = tmp_path / f"{name or '__init__'}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    found = sources.closure("own.stage", (("own", tmp_path),))
    missing = {"apart", "wing.unused"}
    modules = {name.replace("/", ".").removesuffix(".__init__") for name in text} - missing
    assert found == sorted(f"own.{name}".rstrip(".") for name in modules)
    with pytest.raises(ValueError, match=r"there is no module 'own\.nothing' in own"):
        sources.closure("own.nothing", (("own", tmp_path),))


def test_every_stage_names_a_module() -> None:
    from vgg_export import inputs
    from vgg_export.bundle import evaluate
    from vgg_export.compress import distil, factorise, prune
    from vgg_export.core import cache
    from vgg_export.data import sanity
    from vgg_export.graphs import export, winograd
    from vgg_export.int8 import activation_signedness, quantize
    from vgg_export.network import input_size
    from vgg_export.search import points

    modules = (prune, factorise, distil, input_size, export, winograd, quantize, activation_signedness)
    stages = [m.STAGE for m in (*modules, evaluate, sanity, points)]
    for stage in (*stages, inputs.WEIGHTS):
        assert isinstance(stage, cache.Stage)
        assert dataclasses.is_dataclass(stage.measured)
        assert stage.module in sources.closure(stage.module, sources.installed())
