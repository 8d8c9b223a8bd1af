"""The PC's command line as a user runs it: every command, and every kind of bad input."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import (
    CLASSES,
    ROOT,
    command_environment,
    interruptible,
    small_checkpoint,
    small_torchvision_vgg,
)
from PIL import Image

import kill_anywhere
from vgg_export import cli as command_line
from vgg_export.cli import cli
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import FactoriseOptions
from vgg_runtime.bundle import manifest

Run = Callable[..., subprocess.CompletedProcess[str]]
ANY = ("--accept-accuracy",)  # the small networks of the tests have learned nothing


@pytest.fixture(scope="module")
def saved_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vgg11_bn state dict of seven classes, as torchvision's training scripts save it."""
    path = tmp_path_factory.mktemp("state") / "mine.pth"
    torch.save({"state_dict": small_torchvision_vgg("vgg11", True).state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture
def weights(saved_state: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(saved_state, tmp_path))


def refused(done: subprocess.CompletedProcess[str], sentence: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert done.stderr.count("Error: ") == 1


def test_every_command_has_help_with_an_example(in_this_process: Run) -> None:
    for name in cli.commands:
        done = in_this_process(name, "--help")
        assert done.returncode == 0
        assert f"Example: vgg-export {name}" in " ".join(done.stdout.split()), name


def test_the_stages_of_a_tiny_network_by_hand(in_this_process: Run, tmp_path: Path) -> None:
    kill_anywhere.make_inputs(tmp_path)
    tiny, data = ("--weights", "tiny.safetensors"), ("--data", "pictures")
    pruned, factorised = ("--weights", "pruned.safetensors"), ("--weights", "compact.safetensors")
    steps = [
        ("prune", *tiny, *data, *ANY, "--prune-ratio", "0.3", "--repair-images", "12", "--output", pruned[1]),
        ("factorise", *tiny, *data, *ANY, "--conv-share", "0.5", "--output", factorised[1]),
        ("export", *tiny, "--output", "baseline.onnx"),
        ("export", *pruned, "--output", "pruned.onnx"),
        ("export", *factorised, "--output", "compact-fp32.onnx"),
        ("quantize", "--model", "pruned.onnx", *data, "--calibration-images", "8", "--output", "small.onnx"),
        ("bundle", "baseline.onnx", "compact-fp32.onnx", "small.onnx", *data, "--output", "mine"),
        ("evaluate", "--bundle", "mine", *data, *ANY, "--record"),
    ]
    for step in steps:
        done = in_this_process(*step)
        assert done.returncode == 0, (step, done.stderr)
    macs = {
        name: checkpoints.read_header(tmp_path / f"{name}.safetensors").chain.macs()
        for name in ("tiny", "pruned", "compact")
    }
    assert max(macs["pruned"], macs["compact"]) < 0.8 * macs["tiny"]
    made = manifest.read(tmp_path / "mine")
    manifest.verify(tmp_path / "mine", made.all_files())
    assert [v.id for v in made.variants] == ["baseline", "compact-fp32", "small"]
    assert [v.build.evaluation.n for v in made.variants if v.build.evaluation] == [12, 12, 12]
    sizes = [v.build.bytes for v in made.variants]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.release
def test_one_stage_after_the_other_by_hand(
    in_this_process: Run, weights: Path, signs_folder: Path, tmp_path: Path
) -> None:
    data = ("--data", signs_folder)
    (tmp_path / "names.txt").write_text("\n".join(sorted(CLASSES)))
    given = ("--weights", weights, "--labels", "names.txt")
    steps = [
        (
            "prune",
            *given,
            *data,
            *ANY,
            "--prune-ratio",
            "0.5",
            "--repair-images",
            "12",
            "--output",
            "pruned.safetensors",
        ),
        (
            "finetune",
            "--weights",
            "pruned.safetensors",
            "--teacher",
            weights,
            *data,
            *ANY,
            "--finetune-epochs",
            "1",
            "--output",
            "tuned.safetensors",
        ),
        ("export", *given, "--output", "baseline.onnx"),
        ("export", "--weights", "tuned.safetensors", "--input-px", "160", "--output", "small.onnx"),
        (
            "quantize",
            "--model",
            "small.onnx",
            *data,
            "--target",
            "x86-vnni",
            "--calibration-images",
            "8",
            "--output",
            "small-int8.onnx",
        ),
        ("bundle", "baseline.onnx", "small.onnx", "small-int8.onnx", *data, "--output", "mine"),
        ("evaluate", "--bundle", "mine", *data, *ANY, "--record", "--json", "figures.json"),
    ]
    for step in steps:
        done = in_this_process(*step)
        assert done.returncode == 0, (step, done.stderr)
    assert "42 test images, none of them used for fitting" in done.stdout
    bundle = manifest.read(tmp_path / "mine")
    assert [v.id for v in bundle.variants] == ["baseline", "small", "small-int8"]
    assert bundle.variant("small-int8").preprocessing.px == 160
    recorded = bundle.variant("small").build.evaluation
    assert recorded is not None
    assert recorded.to_json() == json.loads((tmp_path / "figures.json").read_text())["small"]
    history = bundle.variant("small-int8").steps
    assert history[0].startswith("pruned about 50%")
    assert history[1] == "repaired in closed form on 12 pictures"
    assert history[-2:] == ("taken to 160 px", "quantized to int8")
    manifest.verify(tmp_path / "mine", bundle.all_files())


@pytest.mark.release
def test_all_from_a_state_dict_and_class_folders(
    vgg_export: Run,
    in_this_process: Run,
    weights: Path,
    signs_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = (
        "all",
        "--weights",
        weights,
        "--data",
        signs_folder,
        *ANY,
        "--prune-ratio",
        "0.5",
        "--output",
        "out",
        "--target",
        "pi4",
    )
    monkeypatch.setattr(command_line, "COMPARE_BUDGET_S", 0.3)  # what is timed is a test of the runtime's
    done = in_this_process(*arguments)
    assert done.returncode == 0, done.stderr
    bundle = manifest.read(tmp_path / "out")
    assert [v.id for v in bundle.variants] == [
        "baseline",
        "pruned",
        "quantized",
        "pruned-quantized",
        "scaled",
        "pruned-quantized-scaled",
    ]
    share = FactoriseOptions().conv_share
    # too narrow
    assert (
        f"compact is left out: the convolutions cannot be factorised to {share:.0%} of their arithmetic"
        in done.stderr
    )
    assert bundle.target.startswith("pi4")
    assert manifest.read_labels(tmp_path / "out", bundle) == tuple(sorted(CLASSES))
    assert all(v.build.evaluation and v.build.evaluation.n == 42 for v in bundle.variants)
    assert "pruned-quantized-scaled  160 " in done.stdout
    report = (tmp_path / "out/report.html").read_text()
    shown = json.loads(report.split('id="result">', 1)[1].split("</script>", 1)[0])
    assert [row["variant"] for row in shown["variants"]] == [v.id for v in bundle.variants]
    assert all(image["thumbnail"].startswith("data:image/jpeg;base64,") for image in shown["images"])
    again = vgg_export(*arguments, "--no-compare")
    assert again.returncode == 0
    assert "bundle: up to date" in again.stderr
    assert again.stderr.count("up to date") == 15


@pytest.mark.release
def test_unlabelled_photographs_give_agreement_and_no_accuracy(
    in_this_process: Run, weights: Path, signs_folder: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "photos"
    flat.mkdir()
    for path in (signs_folder / "train").rglob("*.png"):
        shutil.copy(path, flat / path.name)
    done = in_this_process(
        "all",
        "--weights",
        weights,
        "--data",
        flat,
        "--variants",
        "quantized",
        "--output",
        "out",
        "--no-compare",
    )
    assert done.returncode == 0, done.stderr
    assert "the classes have no names" in done.stderr
    baseline, quantized = manifest.read(tmp_path / "out").variants
    assert quantized.build.evaluation is not None
    assert quantized.build.evaluation.top1 is None
    assert quantized.build.evaluation.agreement.n == quantized.build.evaluation.n == 14
    assert baseline.build.evaluation is not None
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    arguments = ("--variants", "quantized", "--output", "out", "--no-compare", "--labels", "names.txt")
    done = in_this_process("all", "--weights", weights, "--data", flat, *arguments)
    assert done.returncode == 0, done.stderr  # all variants take the names, though no ONNX file has changed
    assert manifest.read_labels(tmp_path / "out", manifest.read(tmp_path / "out")) == CLASSES


def test_a_handful_of_photographs_gives_no_figures(
    in_this_process: Run, weights: Path, tmp_path: Path
) -> None:
    arguments = (
        "all",
        "--weights",
        weights,
        "--data",
        ROOT / "calibration/images",
        "--variants",
        "quantized",
        "--output",
        "out",
        "--no-compare",
    )
    done = in_this_process(*arguments)
    assert done.returncode == 0, done.stderr
    variant = manifest.read(tmp_path / "out").variant("quantized")
    assert variant.build.evaluation is None
    assert variant.build.evaluation_absent is not None
    assert "too few" in variant.build.evaluation_absent


BAD = [
    (("all", "--weights", "nowhere.pth"), "there is no file nowhere.pth"),
    (("all", "--weights", "text.pth"), r"text\.pth"),
    (("all", "--weights", "mine.pth", "--data", "nowhere"), "there is no folder nowhere"),
    # nothing is read or drawn before: half a gigabyte takes its time
    (("all", "--weights", "gone.pth", "--data", "nowhere"), "there is no folder nowhere"),
    (
        ("prune", "--weights", "gone.pth", "--data", "nowhere", "--output", "p.safetensors"),
        "no folder nowhere",
    ),
    (("quantize", "--model", "gone.onnx", "--data", "nowhere", "--output", "q.onnx"), "no folder nowhere"),
    (("bundle", "gone.onnx", "--data", "nowhere", "--output", "b"), "no folder nowhere"),
    (("all", "--weights", "mine.pth", "--data", "empty"), "holds no pictures"),
    (("all", "--weights", "mine.pth", "--data", "three"), "has 7 classes, the data has 3 class folders"),
    (
        ("all", "--weights", "mine.pth", "--data", "three", "--labels", "names.txt"),
        "3 of 3 class folders are no class of the model",
    ),
    (("all", "--weights", "mine.pth", "--labels", "text.pth"), "has 1 class names, the checkpoint has 7"),
    (("all", "--weights", "mine.pth", "--labels", "nowhere.txt"), "there is no file nowhere.txt"),
    (
        ("all", "--weights", "random", "--prune-ratio", "1.5"),
        "--prune-ratio must be at least 0 and below 1, found 1.5",
    ),
    (("all", "--weights", "random", "--width-multiple", "0"), "--width-multiple must be at least 1, found 0"),
    (
        ("all", "--weights", "demo", "--scaled-px", "300"),
        "--scaled-px must be below .* 224 px, found 300",
    ),
    (("all", "--weights", "random", "--variants", "tiny"), "there is no variant 'tiny'"),
    (("all", "--weights", "mine.pth", "--variants", "compact"), "cannot be factorised"),
    (
        ("all", "--weights", "mine.pth", "--labels", "names.txt", "--max-drop", "1"),
        "a search needs selection pictures, which nothing is fitted on",
    ),
    (("all", "--weights", "mine.pth", "--max-drop", "-1"), "--max-drop must be above 0, found -1"),
    (("all", "--weights", "mine.pth", "--target-size", "9MB", "--sure"), "give --max-drop, too"),
    (("all", "--weights", "mine.pth", "--sure"), "give --max-drop, too"),
    (("all", "--weights", "mine.pth", "--max-drop", "1", "--conv-share", "0.4"), "give one or the other"),
    (("all", "--weights", "mine.pth", "--max-drop", "1", "--conv-share", "0.28"), "give one or the other"),
    (("all", "--weights", "random", "--fc-ranks", "0,1"), "ranks, .* must be positive; found 0,1, "),
    (
        ("all", "--weights", "mine.pth", "--target-size", "9MB", "--fc-ranks", "64,32"),
        "give one or the other",
    ),
    (("all", "--weights", "mine.pth", "--max-drop", "1", "--variants", "compact"), "name both in --variants"),
    (("all", "--weights", "mine.pth", "--target-size", "small"), "--target-size takes a size such as 20MB"),
    (("all", "--weights", "random", "--output", "."), "contains the current folder"),
    (("all", "--weights", "random", "--output", "three"), "is not empty and not a readable bundle"),
    (("all", "--weights", "random", "--output", "a", "--work", "a/b"), "lies inside --output"),
    (("all", "--weights", "random", "--target", "toaster"), "'toaster' is not one of"),
    (("all", "--weights", "random", "--output", "text.pth"), "is a file"),
    (("all", "--weights", "random", "--output", "/proc/nothing/here"), "cannot be written|No such file"),
    (
        ("prune", "--weights", "mine.pth", "--prune-ratio", "0.01", "--output", "p.safetensors"),
        "removes nothing",
    ),
    (
        ("prune", "--weights", "mine.pth", "--prune-widths", "sensitivity", "--output", "p.safetensors"),
        "--prune-widths sensitivity needs costs .* use --criterion obs",
    ),
    (
        ("prune", "--weights", "mine.pth", "--no-pictures", "--no-repair", "--output", "p.safetensors"),
        "--no-pictures cannot be used with --data, nor with --no-repair unless --criterion is obs",
    ),
    (("quantize", "--model", "nowhere.onnx", "--output", "q.onnx"), "there is no file nowhere.onnx"),
    (("quantize", "--model", "text.pth", "--output", "q.onnx"), "has no sidecar"),
    (("evaluate", "--bundle", "nowhere"), "there is no bundle in nowhere"),
    (("draw-signs", "--output", "three"), "was not drawn by this program"),
    (("demo-train", "--output", "d.safetensors", "--images", "1"), "--images must be between"),
    (("nonsense",), "No such command 'nonsense'"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, in_this_process: Run, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.pth").write_text("hello\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    for name in ("moose", "elk", "deer"):
        (tmp_path / "three" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), (name == "elk" and "red") or "blue").save(
            tmp_path / "three" / name / f"{name}.png"
        )
    before = sorted(p for p in tmp_path.rglob("*") if ".work" not in str(p))
    refused(in_this_process(*arguments), sentence)
    assert sorted(p for p in tmp_path.rglob("*") if ".work" not in str(p)) == before
    assert weights.is_file()


def test_a_variant_asked_for_by_name_that_the_network_cannot_have_fails_early(
    in_this_process: Run, tmp_path: Path
) -> None:
    """A flattening without a pool reads maps of one size."""
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 64, len(CLASSES)),
    )
    torch.save(network, tmp_path / "flat.pt")
    arguments = ("all", "--weights", str(tmp_path / "flat.pt"), "--data", "none", "--variants", "scaled")
    done = in_this_process(*arguments, "--output", str(tmp_path / "out"), "--no-compare")
    refused(done, "--variants: scaled cannot be made: there is no smaller input: the network takes 16 px")
    assert "exporting" not in done.stderr


@pytest.mark.release
def test_ctrl_c_leaves_nothing_half_and_the_same_command_goes_on(
    weights: Path, signs_folder: Path, tmp_path: Path
) -> None:
    arguments = [
        "all",
        "--weights",
        str(weights),
        "--data",
        str(signs_folder),
        *ANY,
        "--prune-ratio",
        "0.5",
        "--output",
        "out",
    ]
    arguments += ["--no-compare"]
    command = [sys.executable, "-m", "vgg_export", *arguments]
    for marker in ("variant baseline", "asking the teacher", "variant quantized"):
        running = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=command_environment(),
            stderr=subprocess.PIPE,
            text=True,
            **interruptible(),
        )
        assert running.stderr is not None
        for line in running.stderr:
            if marker in line or "variant quantized" in line:
                break
        time.sleep(0.5)
        os.killpg(running.pid, signal.SIGINT)
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 130, rest
        assert "Interrupted" in rest
        assert "Traceback" not in rest
        assert not (tmp_path / "out").exists()
        assert not [
            p
            for p in tmp_path.rglob("*")
            if ".partial" in p.name or p.name.startswith((".quantize.", ".finetune.", ".evaluate."))
        ]
    done = subprocess.run(
        command, cwd=tmp_path, env=command_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "export: up to date" in done.stderr
    manifest.verify(tmp_path / "out", manifest.read(tmp_path / "out").all_files())


def test_an_interrupt_inside_an_executed_string_ends_with_the_documented_code(tmp_path: Path) -> None:
    """Without this, a few runs of the test above, and of users, end as killed by SIGINT."""
    (tmp_path / "interrupted.py").write_text(
        "import runpy\n"
        "from vgg_export import cli\n"
        "def main(*arguments, **options):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "cli.cli.main = main\n"
        "runpy.run_module('vgg_export', run_name='__main__')\n"
    )
    environment = command_environment()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        **interruptible(),
    )
    assert done.returncode == 130, done.stderr
    assert "Interrupted" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 24 MB; where none can be mounted the tests that fill it cannot run."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system here")
    yield folder
    subprocess.run(["umount", folder], check=False)


@pytest.mark.release
@pytest.mark.parametrize("free_mb", [2, 8, 14, 20])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(
    free_mb: int, vgg_export: Run, small_disk: Path, signs_folder: Path, tmp_path: Path
) -> None:
    """The disk fills up in another stage each time: checkpoint, cached features, models, prepared test
    images."""
    checkpoints.save(small_checkpoint(), tmp_path / "own.safetensors")
    (small_disk / "filler").write_bytes(b"0" * (24 - free_mb) * 1_000_000)
    arguments = (
        "--data",
        signs_folder,
        *ANY,
        "--prune-ratio",
        "0.5",
        "--output",
        small_disk / "out",
        "--no-compare",
    )
    done = vgg_export("all", "--weights", "own.safetensors", *arguments)
    refused(done, "the disk is full")
    assert not (small_disk / "out").exists()
    assert not [
        p
        for p in small_disk.rglob("*")
        if ".partial" in p.name or p.name.startswith((".evaluate.", ".finetune.", ".quantize."))
    ]


def test_a_stage_does_not_overwrite_its_input(vgg_export: Run, weights: Path, tmp_path: Path) -> None:
    before = weights.read_bytes()
    refused(
        vgg_export("prune", "--weights", "mine.pth", "--output", "mine.pth"),
        "must be a file name that ends in .safetensors, found mine.pth",
    )
    checkpoints.save(small_checkpoint(), tmp_path / "own.safetensors")
    refused(
        vgg_export("prune", "--weights", "own.safetensors", "--output", "own.safetensors"),
        "is also an input and would be overwritten",
    )
    assert weights.read_bytes() == before


@pytest.mark.release
def test_evaluate_leaves_out_what_the_models_were_made_with(
    in_this_process: Run, signs_folder: Path, tmp_path: Path
) -> None:
    """They are left out even when the bundle was made with other pictures than those that calibrated int8."""
    checkpoints.save(small_checkpoint(), tmp_path / "own.safetensors")
    flat = tmp_path / "photos"
    flat.mkdir()
    for path in (signs_folder / "train").rglob("*.png"):
        shutil.copy(path, flat / path.name)
    for step in (
        ("export", "--weights", "own.safetensors", "--output", "baseline.onnx"),
        ("quantize", "--model", "baseline.onnx", "--data", flat, "--target", "pi4", "--output", "int8.onnx"),
        ("bundle", "baseline.onnx", "int8.onnx", "--data", "none", "--output", "out"),
    ):
        done = in_this_process(*step)
        assert done.returncode == 0, done.stderr
    assert manifest.read(tmp_path / "out").target.startswith("pi4")
    seen = json.loads((tmp_path / "int8.onnx.json").read_text())["measured"]["model"]["calibrated_on"]
    assert len(seen) > 32  # those it was calibrated on and those that chose its form
    done = in_this_process("evaluate", "--bundle", "out", "--data", flat, "--json", "figures.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["int8"]["n"] == 49 - len(seen)


def test_ctrl_c_while_it_starts_is_a_word() -> None:
    """It is sent while the command line is loaded."""
    script = (
        "import os, signal, sys; from vgg_export import launch;"
        "find = type('', (), {'find_spec': lambda *_: os.kill(os.getpid(), signal.SIGINT)});"
        "sys.meta_path.insert(0, find); launch.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, **interruptible()
    )
    assert (done.returncode, done.stderr) == (130, "\nInterrupted.\n")


SIGNALS_ITSELF = """
import os, signal
from vgg_export import cli, launch
def command(*_, **__):
    try:
        os.kill(os.getpid(), {number})
    finally:
        os.kill(os.getpid(), {number})
        print("tidied up", flush=True)
    print("went on")
cli.cli.main = command
{before}
raise SystemExit(launch.main())
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_and_sigterm_end_a_command_as_ctrl_c_does(number: signal.Signals) -> None:
    """A shell sends the second SIGHUP, which must not stop what is done at the end."""
    script = SIGNALS_ITSELF.format(number=int(number), before="")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, **interruptible()
    )
    assert (done.returncode, done.stdout) == (130, "tidied up\n"), done.stderr
    assert "Interrupted. Finished work is kept" in done.stderr


def test_what_nohup_ignores_stays_ignored() -> None:
    ignored = f"signal.signal({int(signal.SIGHUP)}, signal.SIG_IGN)"
    script = SIGNALS_ITSELF.format(number=int(signal.SIGHUP), before=ignored)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, **interruptible()
    )
    assert (done.returncode, done.stdout) == (0, "tidied up\nwent on\n"), done.stderr
