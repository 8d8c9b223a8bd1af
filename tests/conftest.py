"""Real, small things to test on: torchvision VGGs of every family member, drawn signs, a bundle made by the
real stages."""

import contextlib
import fcntl
import functools
import http.client
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torchvision.models import vgg as torchvision_vgg

from vgg_export.cli import main
from vgg_export.core import cache
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits, resolve
from vgg_export.network import chain, input_size
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.provenance import Provenance
from vgg_export.options import DataOptions, QuantizeOptions
from vgg_runtime.bundle import manifest
from vgg_runtime.bundle.input_spec import for_input

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

    from vgg_export.bundle import writer

ROOT = Path(__file__).resolve().parent.parent
# tests that import onnxruntime themselves upload nothing either
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# With as many workers as cores, threads that wait for each other by spinning take the cores from those that
# work: half of the time.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of the processes that tests start
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # of this one, which has read its environment already
CONFIGURATIONS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
CLASSES = ("stop", "yield", "parking", "no entry", "roundabout", "priority road", "ahead only")

# The modules that take longest, the longest first, where no run has measured them yet: what is begun last
# decides how long one worker waits for the other.
LONGEST = (
    "test_full_size.py",
    "test_demo.py",
    "test_deploy.py",
    "test_cli.py",
    "test_sanity.py",
    "test_emulated_pi.py",
    "test_search.py",
    "test_page.py",
    "test_serve.py",
)
SECONDS = "vgg-export/seconds"  # in pytest's cache: how long each test took when it ran last
took = pytest.StashKey[dict[str, float]]()


def pytest_configure(config: pytest.Config) -> None:
    """Every worker gets the same durations, from the process that distributes the tests."""
    given = getattr(config, "workerinput", None)
    cache = getattr(config, "cache", None)
    config.stash[took] = given[SECONDS] if given else cache.get(SECONDS, {}) if cache else {}


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput[SECONDS] = node.config.stash[took]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The modules in the order of how long they took, the longest first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    seconds: dict[Path, float] = {}
    for item in items:
        known = config.stash[took].get(item.nodeid, 0.0)
        seconds[item.path] = seconds.get(item.path, 0.0) + known
    items.sort(key=lambda item: (-seconds[item.path], places.get(item.path.name, len(LONGEST))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Save the duration of each test for the next run."""
    seconds: dict[str, float] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
    if cache := getattr(config, "cache", None):
        cache.set(SECONDS, config.stash[took] | seconds)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist nobody asks
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> "LoadFileScheduling | None":
    """Each module goes to one worker as a whole, so that what its tests share is made once, unless another
    --dist is asked for."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # it would begin with the modules that have the most tests
    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all workers of a run share; the first one that wants it fills it while the others
    wait."""
    base = factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / f"shared-{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            growing = Path(tempfile.mkdtemp(dir=folder.parent))
            make(growing)
            growing.rename(folder)  # whole or not there
    return folder


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """Cases for ``parametrize``: the first ``count`` in every run, the others as ``release``."""
    found = list(cases)
    return [*found[:count], *(pytest.param(case, marks=pytest.mark.release) for case in found[count:])]


NARROW = {64: 16, 128: 16, 256: 32, 512: 32}  # the widths of small VGGs
HIDDEN = (48, 40)


def small_torchvision_vgg(
    family: str, batch_norm: bool, classes: int = len(CLASSES), seed: int = 0
) -> torch.nn.Module:
    """A torchvision VGG in evaluation mode at a quarter of its width (an eighth behind), with lively
    batch-norm statistics."""
    torch.manual_seed(seed)
    widths = [NARROW.get(w, w) for w in torchvision_vgg.cfgs[CONFIGURATIONS[family]]]
    network: torch.nn.Module = torchvision_vgg.VGG(
        torchvision_vgg.make_layers(widths, batch_norm=batch_norm), num_classes=classes, init_weights=False
    )
    network.classifier = torch.nn.Sequential(
        torch.nn.Linear(32 * 49, HIDDEN[0]),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(*HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Linear(HIDDEN[1], classes),
    )
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            assert layer.bias is not None
            torch.nn.init.normal_(layer.bias, std=0.1)
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight, layer.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5)
            for tensor in (layer.bias, layer.running_mean):
                assert tensor is not None
                tensor.data.normal_(std=0.2)
    return network.eval()


def small_checkpoint(
    family: str = "vgg11", classes: int = len(CLASSES), seed: int = 0
) -> checkpoints.Checkpoint:
    """``small_torchvision_vgg`` without batch norm as a checkpoint."""
    stages = [[NARROW[width] for width in stage] for stage in chain.full_width(family).widths()]
    network = chain.Chain(for_input(224), chain.vgg_layers(stages, (*HIDDEN, classes)))
    state = small_torchvision_vgg(family, False, classes, seed).state_dict()
    names = [f"{site.name}.{part}" for site in network.sites for part in ("weight", "bias")]
    labels = CLASSES if classes == len(CLASSES) else tuple(f"class {k}" for k in range(classes))
    tensors = dict(zip(names, state.values(), strict=True))
    return checkpoints.Checkpoint(network, tensors, labels, Provenance("file", f"small {family} for tests"))


@pytest.fixture
def checkpoint() -> checkpoints.Checkpoint:
    return small_checkpoint()


@pytest.fixture
def saved(checkpoint: checkpoints.Checkpoint, tmp_path: Path) -> cache.Artifact:
    path = tmp_path / "checkpoint.safetensors"
    checkpoints.save(checkpoint, path)
    return cache.of(path)


@pytest.fixture(scope="session")
def signs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of the seven CLASSES below train/, val/ and test/, 49, 14 and 42 pictures at 128 px."""
    return made_once(tmp_path_factory, "signs", draw_signs) / "seven"


def draw_signs(folder: Path) -> None:
    from vgg_export.data import signs

    for part, count, base in (("train", 49, 0), ("val", 14, 2000), ("test", 42, 1000)):
        for k in range(count):
            path = folder / "seven" / part / CLASSES[k % 7] / f"{base + k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            signs.draw(CLASSES[k % 7], base + k, 128).save(path)


@pytest.fixture(scope="session")
def splits(signs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Splits:
    cache = tmp_path_factory.mktemp("cache")
    return resolve(DataOptions(str(signs_folder)), "file", CLASSES, None, cache, Quiet())


@pytest.fixture(scope="session")
def bundle_folder(splits: Splits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a small VGG with the variants baseline, quantized (for x86 and for a Raspberry Pi) and
    scaled, evaluated; do not change it."""
    return made_once(tmp_path_factory, "bundle", lambda work: make_bundle(splits, work)) / "artifacts"


def make_bundle(splits: Splits, work: Path) -> None:
    # imported where they are needed: most modules of tests run without them and start sooner
    from vgg_export.bundle import evaluate, writer
    from vgg_export.graphs import export
    from vgg_export.int8 import activation_signedness, quantize

    checkpoints.save(small_checkpoint(), work / "c.safetensors")
    first = cache.of(work / "c.safetensors")
    baseline = export.run(first, work / "baseline.onnx", Quiet())
    scaled = export.run(
        input_size.run(first, work / "f.safetensors", 160, Quiet()), work / "scaled.onnx", Quiet()
    )
    quantized = quantize.run(
        baseline, splits, 16, work / "quantized.onnx", QuantizeOptions("x86-vnni"), Quiet()
    )
    signed = activation_signedness.run(quantized, "pi5", work / "signed.onnx", Quiet())
    entries = entries_of(baseline, quantized, scaled, signed)
    subjects = [evaluate.Subject(e.id, e.model, e.preprocessing, e.builds[0].targets) for e in entries]
    figures = (
        evaluate.run(subjects, splits.test, work / "evaluation.json", Quiet())
        .read(evaluate.Evaluated)
        .figures
    )
    writer.run(writer.Contents(entries, splits, None, figures, None), work / "artifacts", Quiet())


def entries_of(
    baseline: cache.Artifact, quantized: cache.Artifact, scaled: cache.Artifact, signed: cache.Artifact
) -> "tuple[writer.Entry, ...]":
    """The variants of the bundle; the second has a build for a Raspberry Pi, too."""
    from vgg_export.bundle import writer

    other = writer.Build("quantized.pi5", "", ("pi5", "pi4", "pi3", "zero2"), signed, "quantized")
    several = ((baseline, ()), (quantized, (other,)), (scaled, ()))
    return tuple(
        writer.Entry(made.path.stem, made.path.stem, "for tests", (), made, others=others)
        for made, others in several
    )


@pytest.fixture
def bundle_copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(bundle_folder, tmp_path / "artifacts"))


def command_environment() -> dict[str, str]:
    """For child processes that import the checkout's packages whether or not the project is installed."""
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("export", "runtime", "calibration"))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "2"}


def documentation() -> str:
    """The README and all pages of the documentation."""
    paths = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def documented_table(marker: str) -> list[list[str]]:
    """The rows of the table behind an HTML comment in the documentation, without its header."""
    text = documentation().split(f"<!-- {marker} -->\n", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def interruptible() -> dict[str, Any]:
    """Options of Popen for a group of processes that Ctrl-C and a hangup reach even where the tests run in
    the background or under nohup, which ignore them."""

    def notice() -> None:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    return {"start_new_session": True, "preexec_fn": notice}


def reseal(folder: Path, **changes: object) -> None:
    """Change a bundle's manifest as a wrong build would, its own hash fitting."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest.seal(json.loads(path.read_text()) | changes)))


def export_in(
    folder: Path, *arguments: str | Path, timeout_s: float = 500, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``folder`` as a user does; never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "vgg_export", *map(str, arguments)],
        cwd=folder,
        env=command_environment() | extra,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


@pytest.fixture
def vgg_export(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``export_in`` in ``tmp_path``."""
    return functools.partial(export_in, tmp_path)


@pytest.fixture
def in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line without a process of its own, which would spend seconds on loading torch before it
    refuses."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        code = main([*map(str, arguments)])
        # the one it left writes where this test is captured
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
        out, err = capfd.readouterr()
        assert "Traceback" not in err + out
        return subprocess.CompletedProcess(arguments, code, out, err)

    return run


@contextlib.contextmanager
def served(
    bundle: Path, *arguments: str, python: str | Path = sys.executable
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """``compare.py --serve`` of a bundle on a free port."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with serving(
        [str(python), str(bundle / "runtime/compare.py"), "--serve", "--port", "0", *arguments], environment
    ) as found:
        yield found


@contextlib.contextmanager
def serving(command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port and the process of a command that opens a page."""
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        found = re.search(r":(\d+)/", line)
        assert found, line
        wait_until_up(int(found[1]))
        yield int(found[1]), running
    finally:
        running.terminate()
        running.wait(timeout=20)


def wait_until_up(port: int) -> None:
    for _ in range(1200):
        with contextlib.suppress(OSError):
            if ask(port, "GET", "/api/health")[0] == 200:
                return
        time.sleep(0.05)
    raise AssertionError("the server did not come up within a minute")


def ask(
    port: int, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def status_field(pid: int, name: str) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024
