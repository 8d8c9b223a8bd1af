"""bench/verdict_study.py: sets, choices and tables, on networks whose answers are made up."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT, command_environment

import verdict_study as study

N = 3000


def made_up(wrong: float, seed: int) -> npt.NDArray[np.float32]:
    """Logits [N, 4] of a network that is wrong on a share of pictures of class k % 4."""
    random = np.random.default_rng(seed)
    labels = np.arange(N) % 4
    said = np.where(random.random(N) < wrong, (labels + 1) % 4, labels)
    logits = random.normal(size=(N, 4)).astype(np.float32)
    logits[np.arange(N), said] += 5
    return logits


@pytest.fixture(scope="module")
def answers() -> study.Answers:
    """A baseline that is right on 90 %, a network of half its size that loses half a point, and one of a
    tenth that loses 20."""
    baseline = made_up(0.1, 0)
    half, tenth = baseline.copy(), baseline.copy()
    half[:15], tenth[:600] = made_up(1.0, 1)[:15], made_up(1.0, 1)[:600]
    logits = {"baseline": baseline, "half": half, "tenth": tenth}
    return study.Answers(logits, np.arange(N) % 4, {"baseline": 1000, "half": 500, "tenth": 100})


def test_sets_do_not_overlap_and_are_always_the_same() -> None:
    drawn = study.subsets(50, 20, 7)
    assert len(drawn) == 7
    for select, test in drawn:
        assert len({*select, *test}) == 40
    again = study.subsets(50, 20, 7)
    assert all((a[0] == b[0]).all() for a, b in zip(drawn, again, strict=True))
    assert (drawn[0][0] != drawn[1][0]).any()
    with pytest.raises(click.UsageError, match="two sets of 30 pictures do not fit into 50"):
        study.subsets(50, 30, 1)


def test_what_is_truly_lost_is_counted_on_all_pictures(answers: study.Answers) -> None:
    true = answers.true()
    right = {name: (z.argmax(axis=1) == answers.labels).mean() for name, z in answers.logits.items()}
    assert true["baseline"] == 0
    for name in ("half", "tenth"):
        assert true[name] == pytest.approx(100 * (right["baseline"] - right[name]))
    assert 0 < true["half"] < 1 < 10 < true["tenth"]


def test_the_strict_rule_chooses_the_baseline_where_few_pictures_show_too_little(
    answers: study.Answers,
) -> None:
    """On 150 pictures even no loss has an error of 0.65 points."""
    select, test = (answers.figures(rows) for rows in study.subsets(N, 150, 1)[0])
    chosen = {
        rule: study.choose(rule, answers, (select, test), 0.5)
        for rule in (study.STRICT, study.COUNTED, study.ESTIMATE)
    }
    assert chosen[study.STRICT] == study.Choice("baseline", "baseline")
    loss = 100 * (select["baseline"].top1.rate - select["half"].top1.rate)  # type: ignore[union-attr]
    assert chosen[study.COUNTED].searched == ("half" if loss <= 0.5 else "baseline")
    large = [answers.figures(rows) for rows in study.subsets(N, 1500, 1)[0]]
    for rule in chosen:
        assert study.choose(rule, answers, tuple(large), 1.5) == study.Choice("half", "half")
        assert study.choose(rule, answers, tuple(large), 40.0) == study.Choice("tenth", "tenth")


def test_a_summary_counts_what_exceeds_and_means_the_speed(answers: study.Answers) -> None:
    true = {"baseline": 0.0, "half": 0.5, "tenth": 20.0}
    chosen = ["half", "tenth", "baseline", "tenth"]
    # the geometric mean of 2, 10, 1 and 10
    assert study.summary(chosen, answers, true, 1.0) == ["50 %", "19.0", "3.8x"]
    assert study.summary(["half"], answers, true, 0.5) == ["0 %", "–", "2.0x"]


@pytest.mark.release
def test_the_command_prints_both_tables_of_answers_that_are_there(
    answers: study.Answers, tmp_path: Path
) -> None:
    macs = list(answers.macs.values())
    np.savez(tmp_path / "answers.npz", labels=answers.labels, macs=macs, **answers.logits)  # type: ignore[arg-type]
    environment = command_environment()
    environment["PYTHONPATH"] += os.pathsep + str(ROOT / "bench")
    command = [sys.executable, str(ROOT / "bench/verdict_study.py"), "--work", str(tmp_path)]
    command += ["--sizes", "100", "--allowed", "1", "--times", "3"]
    for more in ((), ("--unlabelled",)):
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "3,000 pictures, 3 networks, 3 sets of each size" in done.stdout
        rows = [line.split(" | ")[:3] for line in done.stdout.splitlines() if line.startswith("| 100 | 1 |")]
        assert rows == [["| 100", "1", rule] for rule in ("strict", "counted", "estimate")]
        assert f"| half | {answers.true()['half']:.2f} | " in done.stdout or more


def test_the_commands_of_the_documentation_parse() -> None:
    text = (ROOT / "docs/verdict.md").read_text(encoding="utf-8").replace("\\\n", "")
    found = re.findall(r"^    python bench/verdict_study.py (.*)$", text, re.MULTILINE)
    assert len(found) == 3
    for arguments in found:
        study.main.make_context("verdict_study.py", shlex.split(arguments))
