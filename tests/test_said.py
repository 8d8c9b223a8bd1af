"""What the commands say of a hostile name: one sentence with the cause, and nothing raw of the name."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vgg_runtime.classify.command import main as classify
from vgg_runtime.compare import main as compare

HOSTILE = "x\x1b[31m\x9b2J\r\n\u202ey"  # colours, a wiped screen, another line, the other direction
RAW = ("\x1b", "\x9b", "\r", "\u202e")

EXPORT = (
    ("all", "--weights", f"{HOSTILE}.pth"),
    ("all", "--weights", f"damaged/{HOSTILE}.pth"),
    ("all", "--weights", f"damaged/{HOSTILE}.onnx"),
    ("all", "--weights", f"damaged/{HOSTILE}.h5"),
    ("all", "--weights", f"damaged/{HOSTILE}.safetensors"),
    ("all", "--weights", "random", "--data", HOSTILE),
    ("all", "--weights", "random", "--data", f"empty/{HOSTILE}"),
    ("all", "--weights", "random", "--labels", HOSTILE),
    ("all", "--weights", "random", "--labels", f"damaged/{HOSTILE}.txt"),
    ("all", "--weights", "random", "--variants", HOSTILE),
    ("all", "--weights", "random", "--target", HOSTILE),
    ("all", "--weights", "random", "--output", f"damaged/{HOSTILE}.pth"),
    ("all", "--like", f"{HOSTILE}.json"),
    ("all", "--like", f"damaged/{HOSTILE}.json"),
    ("inspect", "--weights", f"damaged/{HOSTILE}.pth"),
    ("quantize", "--model", f"{HOSTILE}.onnx", "--output", "q.onnx"),
    ("evaluate", "--bundle", HOSTILE),
    ("evaluate", "--bundle", f"empty/{HOSTILE}"),
    ("serve", "--bundle", HOSTILE),
    ("deploy", "me@board", "--bundle", HOSTILE),
    ("deploy", HOSTILE, "--bundle", "nowhere"),
    (HOSTILE,),
    (f"--{HOSTILE}",),
)
RUNTIME = (
    ("--bundle", HOSTILE),
    ("--bundle", f"empty/{HOSTILE}"),
    ("--image", f"{HOSTILE}.jpg"),
    ("--image", f"damaged/{HOSTILE}.jpg"),
    ("--images", HOSTILE),
    ("--images", f"empty/{HOSTILE}"),
    ("--diff", f"damaged/{HOSTILE}.json", f"damaged/{HOSTILE}.json"),
    ("--diff", f"{HOSTILE}.json", f"{HOSTILE}.json"),
    ("--variants", HOSTILE),
    ("--target", HOSTILE),
    ("--json", f"{HOSTILE}/r.json"),
    ("--ship", f"{HOSTILE}/app"),
    ("--live", HOSTILE),
    ("--live", "scaled", "--source", HOSTILE),
    ("--live", "scaled", "--source", f"http://{HOSTILE}/"),
    ("--live", "scaled", "--source", f"empty/{HOSTILE}"),
    ("--live", "scaled", "--source", "-", "--log", f"{HOSTILE}/log"),
    ("--live", "scaled", "--source", "-", "--mqtt", f"mqtt://{HOSTILE}"),
    ("--live", "scaled", "--source", "-", "--on-change", f"'{HOSTILE}"),
)
CLASSIFY = (
    (f"{HOSTILE}.jpg",),
    (f"damaged/{HOSTILE}.jpg",),
    ("--variant", HOSTILE, "a.jpg"),
    (f"empty/{HOSTILE}",),
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with damaged files and an empty folder of hostile names."""
    (tmp_path / "empty" / HOSTILE).mkdir(parents=True)
    (tmp_path / "damaged").mkdir()
    for suffix in ("pth", "onnx", "h5", "safetensors", "txt", "json", "jpg"):
        (tmp_path / f"damaged/{HOSTILE}.{suffix}").write_bytes(f"no {HOSTILE}".encode() + b"\xff\0" * 40)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ensure_harmless(code: int, said: str) -> None:
    assert code in (1, 2), said
    assert said.strip()
    assert not [raw for raw in RAW if raw in said], repr(said)
    # what follows the end of a line in a name looks like no line of the program
    assert not [line for line in said.split("\n") if line.startswith(("y", "·y"))], repr(said)
    assert "Traceback" not in said
    assert "unexpected" not in said


@pytest.mark.parametrize(
    "arguments", EXPORT, ids=[" ".join(words).encode("unicode_escape").decode() for words in EXPORT]
)
def test_vgg_export_says_nothing_raw(
    arguments: tuple[str, ...],
    place: Path,
    in_this_process: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = in_this_process(*arguments)
    ensure_harmless(done.returncode, done.stderr + done.stdout)


def ended(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return command(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    "arguments", RUNTIME, ids=[" ".join(words).encode("unicode_escape").decode() for words in RUNTIME]
)
def test_compare_says_nothing_raw(
    arguments: tuple[str, ...], place: Path, bundle_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = () if arguments[0] in ("--bundle", "--diff") else ("--bundle", str(bundle_folder))
    code = ended(compare, [*bundle, *arguments])
    said = capfd.readouterr()
    ensure_harmless(code, said.err + said.out)


@pytest.mark.parametrize(
    "arguments", CLASSIFY, ids=[" ".join(words).encode("unicode_escape").decode() for words in CLASSIFY]
)
def test_classify_says_nothing_raw(
    arguments: tuple[str, ...], place: Path, bundle_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = ended(classify, ["--bundle", str(bundle_folder), *arguments])
    said = capfd.readouterr()
    ensure_harmless(code, said.err + said.out)
