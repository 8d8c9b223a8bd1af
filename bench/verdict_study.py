"""Shows what the rule of ``vgg_runtime.measure.verdict`` is worth: how often its choice truly loses more than
was allowed, and how fast the choice is, against the strict rule (``--sure``).

    python bench/verdict_study.py --px 112 --pictures 5000 --judged 2200 --work study/demo
    python bench/verdict_study.py --px 112 --pictures 5000 --judged 2600 --memorise 500
    --share 0.5 --share 0.35 --share 0.2 --share 0.12 --work study/by-heart
    python bench/verdict_study.py --models baseline.onnx --models compact.onnx --work study/mine

A ladder of real networks, from the original to one that loses points, answers some thousand drawn signs; its
answers stay in ``answers.npz`` of the work folder. What a network loses on all of them is called true. Then
many small sets are drawn from them: a search chooses on one, the board judges on another of the same size.
The speed of a network is that of its arithmetic. Two tables are printed as Markdown: the choices, and how far
the estimate of each network's loss is from the truth.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import click
import numpy as np
import numpy.typing as npt

import verdict_ladder
from vgg_export.bundle import evaluate
from vgg_export.terminal import TerminalProgress
from vgg_runtime.bundle.manifest import Searched
from vgg_runtime.measure import verdict
from vgg_runtime.measure.recommend import recommend
from vgg_runtime.result import Evaluation, Loss, Row

SIZES = (100, 300, 1000)
SHARES = (0.35, 0.2, 0.17, 0.15, 0.12)
# The rule with --sure; that of this bundle if only counted answers decided; and the rule.
STRICT, COUNTED, ESTIMATE = "strict", "counted", "estimate"


@dataclasses.dataclass(frozen=True)
class Answers:
    """What networks answer to all pictures: ``logits`` float32 [n, classes] by name, the baseline's first;
    ``labels`` int64 [n], -1 where no class is told; ``macs`` by name."""

    logits: Mapping[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    macs: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> Self:
        with np.load(path) as found:
            names = [name for name in found.files if name not in ("labels", "macs")]
            logits = {name: found[name] for name in names}
            return cls(logits, found["labels"], dict(zip(names, map(int, found["macs"]), strict=True)))

    @property
    def baseline(self) -> str:
        return next(iter(self.logits))

    def without_labels(self) -> Self:
        return dataclasses.replace(self, labels=np.full_like(self.labels, -1))

    def figures(self, rows: npt.NDArray[np.intp]) -> dict[str, Evaluation]:
        """What is recorded of every network on some of the pictures."""
        reference = self.logits[self.baseline][rows]
        return {
            name: evaluate.figures(z[rows], reference, self.labels[rows]) for name, z in self.logits.items()
        }

    def true(self) -> dict[str, float]:
        """The points that each network loses on all pictures."""
        found = self.figures(np.arange(len(self.labels)))
        return {name: verdict.counted(own, found[self.baseline]).points for name, own in found.items()}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A network that a rule chose, on the selection pictures (``searched``) and on the board."""

    searched: str
    board: str


def choose(rule: str, answers: Answers, pair: tuple[Mapping[str, Evaluation], ...], allowed: float) -> Choice:
    """The fastest network that a rule allows on the selection pictures, and what the board recommends by the
    test pictures, which are the second of the ``pair``."""
    sure = rule == STRICT
    select, test = ({name: _figure(rule, own) for name, own in found.items()} for found in pair)
    losses = {name: verdict.lost(own, select[answers.baseline], sure=sure) for name, own in select.items()}
    fit = [name for name, loss in losses.items() if verdict.within(loss, allowed, sure=sure)]
    best = min((answers.baseline, *fit), key=answers.macs.__getitem__)
    chosen = Searched(best, losses[best], tuple(answers.logits)) if best != answers.baseline else None
    rows = [row(name, macs, test[name]) for name, macs in answers.macs.items()]
    found = recommend(rows, answers.baseline, allowed, searched=chosen, sure=sure)
    return Choice(best, found.variant or answers.baseline)


def _figure(rule: str, own: Evaluation) -> Evaluation:
    """What is known of a network with a rule: without the estimate where only counted answers decide."""
    return dataclasses.replace(own, loss=None) if rule == COUNTED else own


def row(name: str, macs: int, built: Evaluation) -> Row:
    return Row(
        variant=name,
        title=name,
        precision="fp32",
        input_px=0,
        parameters=0,
        macs=macs,
        size_bytes=0,
        p50_ms=float(macs),
        built=built,
    )


def subsets(count: int, n: int, times: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Pairs of disjoint sets of ``n`` of ``count`` pictures: to select on, and to test on."""
    if 2 * n > count:
        raise click.UsageError(f"two sets of {n} pictures do not fit into {count}; ask for more pictures")
    random = np.random.default_rng(0)
    drawn = [random.permutation(count) for _ in range(times)]
    return [(order[:n], order[n : 2 * n]) for order in drawn]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (heading, ["---"] * len(heading), *rows)]
    return "\n".join(lines)


def summary(chosen: Sequence[str], answers: Answers, true: Mapping[str, float], allowed: float) -> list[str]:
    """How often the chosen networks truly lose more than was allowed, by how much then, and how fast they
    are."""
    over = [true[name] - allowed for name in chosen if true[name] > allowed + verdict.SLACK]
    whole = answers.macs[answers.baseline]
    speed = math.exp(statistics.fmean(math.log(whole / answers.macs[name]) for name in chosen))
    more = f"{statistics.fmean(over):.1f}" if over else "–"
    return [f"{100 * len(over) / len(chosen):.0f} %", more, f"{speed:.1f}x"]


def choices(answers: Answers, sizes: Sequence[int], budgets: Sequence[float], times: int) -> str:
    """The table of choices."""
    true, rows = answers.true(), []
    for n in sizes:
        pairs = [tuple(map(answers.figures, pair)) for pair in subsets(len(answers.labels), n, times)]
        for allowed in budgets:
            for rule in (STRICT, COUNTED, ESTIMATE):
                found = [choose(rule, answers, pair, allowed) for pair in pairs]
                same = sum(choice.searched == choice.board for choice in found) / len(found)
                searched = summary([choice.searched for choice in found], answers, true, allowed)
                board = summary([choice.board for choice in found], answers, true, allowed)
                rows.append([f"{n:,}", f"{allowed:g}", rule, *searched, *board, f"{100 * same:.0f} %"])
    heading = ["pictures", "allowed", "rule", "over", "by", "speed"]
    return table([*heading, "board: over", "by", "speed", "same"], rows)


def estimates(answers: Answers, sizes: Sequence[int], times: int) -> str:
    """The table of how far the two figures of a loss are from the truth: the mean and the root of the mean
    square of the difference, and how often the truth is above what is lost at most with 95 %."""
    true, rows = answers.true(), []
    kinds: dict[str, Callable[[Evaluation, Evaluation], Loss]] = {
        "counted": verdict.counted,
        "estimate": verdict.lost,
    }
    drawn = {
        n: [answers.figures(select) for select, _ in subsets(len(answers.labels), n, times)] for n in sizes
    }
    for name in list(answers.logits)[1:]:
        cells = [name, f"{true[name]:.2f}"]
        for n in sizes:
            for figure in kinds.values():
                losses = [figure(found[name], found[answers.baseline]) for found in drawn[n]]
                off = np.array([loss.points - true[name] for loss in losses])
                above = statistics.fmean(verdict.at_most(loss) < true[name] for loss in losses)
                cells.append(f"{off.mean():+.1f} / {np.sqrt((off**2).mean()):.1f} / {100 * above:.0f} %")
        rows.append(cells)
    return table(["network", "truly lost", *(f"{kind}, {n:,}" for n in sizes for kind in kinds)], rows)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--weights", default="demo", show_default=True, help="The original, to make a ladder of.")
@click.option(
    "--models", type=Path, multiple=True, help="Exported models instead; the first is the baseline."
)
@click.option("--share", "shares", type=float, multiple=True, default=SHARES, show_default=True)
@click.option("--px", default=0, help="Input size of all networks  [default: the original's own]")
@click.option("--memorise", default=0, help="Let the original know so many pictures by heart first.")
@click.option("--pictures", default=3000, show_default=True, help="Signs to draw to judge on.")
@click.option("--judged", type=int, help="Judge on so many of them only.")
@click.option("--fit", default=900, show_default=True, help="Signs to fit the ladder on.")
@click.option("--sizes", type=int, multiple=True, default=SIZES, show_default=True)
@click.option("--allowed", type=float, multiple=True, default=(1.0, 2.0), show_default=True)
@click.option("--times", default=100, show_default=True, help="Sets that are drawn of each size.")
@click.option("--unlabelled", is_flag=True, help="Judge by the baseline's answers.")
@click.option("--work", type=Path, required=True)
def main(
    weights: str,
    models: tuple[Path, ...],
    shares: tuple[float, ...],
    px: int,
    memorise: int,
    pictures: int,
    judged: int | None,
    fit: int,
    sizes: tuple[int, ...],
    allowed: tuple[float, ...],
    times: int,
    work: Path,
    *,
    unlabelled: bool,
) -> None:
    work.mkdir(parents=True, exist_ok=True)
    asked = verdict_ladder.Asked(weights, shares, px, pictures, fit, memorise, judged)
    progress = TerminalProgress()
    path = (
        verdict_ladder.of_files(models, asked, work, progress)
        if models
        else verdict_ladder.answers(asked, work, progress)
    )
    answers = Answers.read(path)
    answers = answers.without_labels() if unlabelled else answers
    print(f"{len(answers.labels):,} pictures, {len(answers.logits)} networks, {times} sets of each size\n")
    print(choices(answers, sizes, allowed, times), end="\n\n")
    print(estimates(answers, sizes, times))


if __name__ == "__main__":
    main()
