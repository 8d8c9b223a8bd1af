"""Every target with its seeds and what was found once, with changes of them, and for a while with atheris."""

import importlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command_environment
from fuzz import fuzzing, manifest

from vgg_runtime.errors import RuntimeInputError

CHANGES = 40  # of the seeds of each target
FOUND = Path(__file__).with_name("found")  # TARGET-WHAT: inputs that once did what they must not


def target_named(name: str) -> fuzzing.Target:
    found: fuzzing.Target = importlib.import_module(f"fuzz.{name}").TARGET
    return found


@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_seeds_and_what_was_found_are_used_or_refused(name: str) -> None:
    target, chance = target_named(name), random.Random(0)
    seeds = [*target.seeds(), *(path.read_bytes() for path in sorted(FOUND.glob(f"{name}-*")))]
    for data in seeds:
        fuzzing.use(target, data)
    for _ in range(CHANGES if name not in ("page", "keras_files") else 10):  # these start processes
        fuzzing.use(target, fuzzing.changed(target, chance.choice(seeds), chance))


def test_the_first_seed_of_each_target_is_not_refused() -> None:
    for name in fuzzing.NAMES:
        target = target_named(name)
        if name != "manifest":  # whose files are not those of its hashes
            target.feed(target.seeds()[0])
    with pytest.raises(RuntimeInputError, match=r"labels\.txt differs from the manifest"):
        manifest.feed(manifest.seeds()[0])


def test_what_must_not_happen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> None:
        if b"slow" in data:
            while True:
                pass
        raise KeyError(data) if b"!" in data else ValueError(data)

    monkeypatch.setattr(fuzzing, "LONGEST_S", 0.05)
    target = fuzzing.Target(lambda: [b"a"], fail, (ValueError,))
    run = fuzzing.Run("t", target, tmp_path)
    for data in (b"a", b"a!", b"b!", b"slow"):
        run.feed(data)
    assert sorted((kind.partition("-")[0], count) for kind, count in run.kinds.items()) == [
        ("KeyError", 2),
        ("TooSlow", 1),
    ]
    kept = [path.read_bytes() for path in sorted(tmp_path.iterdir()) if path.suffix != ".txt"]
    assert kept == [b"a!", b"slow"]


@pytest.mark.release
@pytest.mark.parametrize("name", fuzzing.NAMES)
def test_nothing_is_found_in_a_few_seconds(name: str, tmp_path: Path) -> None:
    command = [sys.executable, fuzzing.__file__, name, "--seconds", "4", "--found", str(tmp_path)]
    done = subprocess.run(command, env=command_environment(), capture_output=True, text=True, check=False)
    found = [path.read_text() for path in sorted(tmp_path.glob("*.txt"))]
    assert done.returncode == 0, "\n".join((done.stdout, *found)) if found else done.stderr[-5000:]
    assert f"{name}: " in done.stdout
