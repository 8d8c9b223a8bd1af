"""onnxruntime's wheels from 1.29 on upload events and write a device identifier; nothing that is started here
lets them.

The counter-checks run onnxruntime without the project: they see what is to be prevented. Nobody is reached
from here: connections are refused by the tracer, or go to a proxy that is not there.
"""

import ast
import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, command_environment, first

from emulated import BOARDS, Pi

VARIABLE = "ORT_DISABLE_TELEMETRY"
HAS_TELEMETRY = tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2])) >= (1, 29)
PATIENCE_S = 120.0  # onnxruntime 1.32.0 looks its collector up 9 s after it has begun
AFTERWARDS_S = 3.0  # for which what looked up nothing is watched on

# Whatever looks a name up or connects to another machine, and the files of the telemetry, wherever they are.
ATTEMPT = re.compile(r"AF_INET|/etc/resolv\.conf|/nscd/|/systemd/resolve/")
FILES = re.compile(r"DeveloperTools/|/\.ses\b|deviceid")

# Loads and runs the model it is given, then waits until its standard input ends. An import of the project's
# may stand before it.
BARE = """
import sys
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(wanted,) = session.get_inputs()
session.run(None, {wanted.name: numpy.zeros([1, *wanted.shape[1:]], numpy.float32)})
print("ran", flush=True)
sys.stdin.read()
"""
# The same with the device's own class.
RUNTIME = """
import sys
from pathlib import Path
import numpy
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model
model = Model(Path(sys.argv[1]), SessionSettings(), 1)
model(numpy.zeros([1, 3, int(sys.argv[2]), int(sys.argv[2])], numpy.float32))
print("ran", flush=True)
sys.stdin.read()
"""

STRACE = shutil.which("strace")
MISSING = "needs strace (Debian: apt install strace) and the right to trace a process"
# With any of these set onnxruntime 1.32.0 keeps its telemetry to itself (strings of its library), as a
# board's never does.
BUILD_SERVERS = frozenset(
    {"CI", "TF_BUILD", "GITHUB_ACTIONS", "GITLAB_CI", "CIRCLECI", "TRAVIS", "JENKINS_URL"}
    | {"CODEBUILD_BUILD_ID", "BUILDKITE", "TEAMCITY_VERSION", "APPVEYOR", "BITBUCKET_BUILD_NUMBER"}
)
REFUSED = ("-e", "inject=connect,sendto,sendmsg,sendmmsg:error=ENETUNREACH")
QUIETLY = ("--budget", "0.2", "--rounds", "1")


def tracing() -> bool:
    """Whether a process can be traced here: some containers forbid it."""
    return (
        bool(STRACE)
        and subprocess.run(
            [str(STRACE), "-f", "-o", "/dev/null", *REFUSED, "true"], capture_output=True
        ).returncode
        == 0
    )


TRACING = tracing()

if not TRACING and os.environ.get("VGG_EXPORT_REQUIRE_TRACE"):  # .ci/run sets it

    def test_processes_can_be_traced() -> None:
        pytest.fail(MISSING)


needs_strace = pytest.mark.skipif(
    not TRACING and not os.environ.get("VGG_EXPORT_REQUIRE_TRACE"), reason=MISSING
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a user with an empty home folder and no settings."""
    home.mkdir()
    left_out = {VARIABLE, "XDG_CACHE_HOME"} | BUILD_SERVERS
    kept = {
        k: v
        for k, v in command_environment().items()
        if k not in left_out and not k.lower().endswith("_proxy")
    }
    return kept | {"HOME": str(home), "TMPDIR": str(home)} | more


def offline(home: Path, **more: str) -> dict[str, str]:
    """The environment for processes that are not traced: its proxy does not exist."""
    return environment(home, https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9") | more


def left_in(home: Path) -> list[str]:
    """The telemetry's files."""
    return [
        path for path in (f"/{found.relative_to(home)}" for found in home.rglob("*")) if FILES.search(path)
    ]


def bare(model: Path, *, first: str = "", **environment: str) -> None:
    command = [sys.executable, "-c", f"{first}{BARE}", str(model)]
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def model_of(bundle: Path) -> Path:
    return bundle / "models/baseline.onnx"


# What is written.


@pytest.mark.skipif(not HAS_TELEMETRY, reason="this onnxruntime has no telemetry")
def test_onnxruntime_alone_writes_a_device_identifier(bundle_folder: Path, tmp_path: Path) -> None:
    """If this fails for a new onnxruntime, look where its telemetry writes now: the other tests would not see
    it there."""
    bare(model_of(bundle_folder), **offline(tmp_path / "home"))
    assert any("deviceid" in path for path in left_in(tmp_path / "home"))


@pytest.mark.parametrize("package", ["vgg_runtime", "vgg_export", "vgg_calibration.observe"])
def test_behind_any_package_it_writes_none(package: str, bundle_folder: Path, tmp_path: Path) -> None:
    bare(model_of(bundle_folder), first=f"import {package}", **offline(tmp_path / "home"))
    assert left_in(tmp_path / "home") == []


@pytest.mark.parametrize("what", first(2, ["compare", "doctor", "evaluate"]))
def test_no_command_writes_a_device_identifier(
    what: str, bundle_copy: Path, signs_folder: Path, tmp_path: Path
) -> None:
    compare = [bundle_copy / "runtime/compare.py"]
    command = {
        "compare": [*compare, "--variants", "baseline", *QUIETLY],
        "doctor": [*compare, "--doctor"],
        "evaluate": [
            "-m",
            "vgg_export",
            "evaluate",
            "--bundle",
            bundle_copy,
            "--data",
            signs_folder,
            "--accept-accuracy",
        ],
    }[what]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env=offline(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # it came as far as a session
    assert ("its process took" if what == "doctor" else "baseline") in done.stdout
    assert left_in(tmp_path / "home") == []


# What is sent.


def traced(trace: Path, *command: str | Path) -> list[str]:
    assert STRACE
    return [
        STRACE,
        "-f",
        "-qq",
        "-s",
        "200",
        "-e",
        "trace=%network,openat",
        *REFUSED,
        "-o",
        str(trace),
        *map(str, command),
    ]


def seen(trace: Path, pattern: re.Pattern[str]) -> list[str]:
    return [line for line in trace.read_text(errors="replace").splitlines() if pattern.search(line)]


@contextlib.contextmanager
def waiting(trace: Path, home: Path, code: str, *arguments: str | Path) -> Iterator[None]:
    """A traced process that has run a model and goes on."""
    command = traced(trace, sys.executable, "-c", code, *arguments)
    with subprocess.Popen(
        command, env=environment(home), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            assert running.stdout.readline() == "ran\n"
            yield
        finally:
            running.stdin.close()
            assert running.wait(timeout=60) == 0


@pytest.mark.release
@needs_strace
def test_a_loaded_model_looks_nothing_up_for_as_long_as_onnxruntime_alone_takes_to(
    bundle_folder: Path, tmp_path: Path
) -> None:
    """Both run side by side until the one without the project has tried to reach somebody, which takes
    seconds."""
    model, ours, alone = model_of(bundle_folder), tmp_path / "ours", tmp_path / "alone"
    end = time.monotonic() + PATIENCE_S
    with (
        waiting(ours, tmp_path / "home", RUNTIME, model, "224"),
        waiting(alone, tmp_path / "other", BARE, model),
    ):
        while HAS_TELEMETRY and not seen(alone, ATTEMPT):
            assert time.monotonic() < end, (
                "onnxruntime alone reaches for nobody any more: this test would not see it"
            )
            time.sleep(0.2)
        time.sleep(AFTERWARDS_S)
    if HAS_TELEMETRY:
        assert seen(alone, FILES)
        assert left_in(tmp_path / "other")
    assert seen(ours, re.compile("baseline.onnx"))  # a trace, and of the process that loads the model
    assert (seen(ours, ATTEMPT), seen(ours, FILES), left_in(tmp_path / "home")) == ([], [], [])


@needs_strace
def test_a_comparison_and_its_children_reach_for_nobody(bundle_folder: Path, tmp_path: Path) -> None:
    trace, launcher = tmp_path / "trace", bundle_folder / "runtime/compare.py"
    command = traced(trace, sys.executable, launcher, "--variants", "baseline", *QUIETLY)
    done = subprocess.run(
        command, env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert seen(trace, re.compile("baseline.onnx"))
    assert (seen(trace, ATTEMPT), seen(trace, FILES), left_in(tmp_path / "home")) == ([], [], [])


# Who sets it.


@pytest.mark.parametrize("value", ["0", "", "1", None])
def test_what_a_person_has_set_stays(value: str | None, tmp_path: Path) -> None:
    own = {} if value is None else {VARIABLE: value}
    code = "import subprocess, sys, vgg_runtime; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", code, f"import os; print(os.environ[{VARIABLE!r}])"]
    done = subprocess.run(
        command, env=environment(tmp_path / "home") | own, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{'1' if value is None else value}\n"  # in a child


@pytest.mark.skipif(not HAS_TELEMETRY, reason="this onnxruntime has no telemetry")
def test_a_person_may_have_it(bundle_folder: Path, tmp_path: Path) -> None:
    bare(model_of(bundle_folder), first="import vgg_export", **offline(tmp_path / "home", **{VARIABLE: "0"}))
    assert left_in(tmp_path / "home")


@pytest.mark.parametrize("value", ["0", None])
def test_an_emulated_board_begins_with_it(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Python may import onnxruntime without the runtime, and has nothing else of this machine's
    environment."""
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    here = Pi(BOARDS["cortex-a72"], Path(sys.executable), Path("no-plugin"))
    assert here.run("-c", f"import os; print(os.environ[{VARIABLE!r}])").stdout == f"{value or '1'}\n"


# What the source says.

PACKAGES = {
    "vgg_runtime": ROOT / "runtime",
    "vgg_calibration": ROOT / "calibration",
    "vgg_export": ROOT / "export",
}
SOURCES = sorted(path for folder in (*PACKAGES.values(), ROOT / "bench") for path in folder.rglob("*.py"))


def packages(node: ast.AST) -> set[str]:
    """What a statement imports by name, and every statement within it."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            found |= {alias.name.split(".")[0] for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom) and not inner.level:
            found.add(str(inner.module).split(".")[0])
    return found


def prepares(statement: ast.stmt) -> bool:
    """Whether a statement of a module's sets the variable, or imports a package that does."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return any(
            sets_it_first(PACKAGES[name] / name / "__init__.py")
            for name in packages(statement) & set(PACKAGES)
        )
    return ast.unparse(statement) == f"os.environ.setdefault({VARIABLE!r}, '1')"


def sets_it_first(module: Path) -> bool:
    """Whether a module sets the variable before it, or a function of it, imports onnxruntime."""
    for statement in ast.parse(module.read_text(encoding="utf-8")).body:
        if prepares(statement):
            return True
        if "onnxruntime" in packages(statement):
            return False
    return False


def is_prepared(module: Path) -> bool:
    """Whether a module, or a package around it, sets the variable first; packages are imported before it."""
    packages = (folder / "__init__.py" for folder in module.parents)
    return any(
        sets_it_first(path) for path in (module, *(p for p in packages if p != module)) if path.exists()
    )


def importing(modules: list[Path]) -> list[Path]:
    return [
        module
        for module in modules
        if "onnxruntime" in packages(ast.parse(module.read_text(encoding="utf-8")))
    ]


def test_whatever_imports_onnxruntime_has_it_set_before() -> None:
    found = importing(SOURCES)
    assert {"session.py", "observe.py", "audit.py", "forms.py", "winograd_counts_child.py"} <= {
        module.name for module in found
    }
    assert [module for module in found if not is_prepared(module)] == []


def test_this_check_can_fail(tmp_path: Path) -> None:
    sources = {
        "never": ("import onnxruntime", False),
        "too_late": ("from onnxruntime.quantization import x\nimport vgg_runtime", False),
        "in_a_function": ("def f():\n    import onnxruntime.quantization", False),
        "another_value": (f"import os\nos.environ.setdefault('{VARIABLE}', '0')\nimport onnxruntime", False),
        "somebodys_own": ("import vgg\nimport onnxruntime", False),
        "in_time": ("from vgg_export.x import y\ndef f():\n    import onnxruntime", True),
        "itself": (f"import os\nos.environ.setdefault('{VARIABLE}', '1')\nimport onnxruntime", True),
    }
    for name, (text, expected) in sources.items():
        module = tmp_path / f"{name}.py"
        module.write_text(text)
        assert importing([module]) == [module]
        assert is_prepared(module) == expected, name
    (tmp_path / "__init__.py").write_text("from vgg_runtime import x")
    assert is_prepared(tmp_path / "in_a_function.py")
