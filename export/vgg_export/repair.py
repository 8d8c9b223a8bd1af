"""Closed-form repair: every layer is fitted again to what the original layer said, on the inputs that it gets
now.

One walk from the input to the logits. For each layer that changed, or whose inputs did, with X~ its inputs in
the smaller network and Y what the original layer computes from the original's own inputs (He et al. 2017,
"Channel pruning"):

    W' = W_S + (Y - W_S X~) X~^T (X~ X~^T + lambda I)^-1,  centred;  b' = mean(Y) - W' mean(X~)

a ridge regression anchored at the old weights W_S of the inputs that are left. lambda is chosen on pictures
that were not used for the fit. A factorised convolution keeps the r directions of W' X~ with the largest
variance (reduced-rank regression), or the r vertical filters of ``separable``; a fully connected layer those
that matter to the logits. Only sums of products are kept, never all patches.
"""

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import separable
from .core.files import atomic_file
from .core.progress import Progress
from .network import chain
from .network import checkpoint as checkpoints

if TYPE_CHECKING:
    import torch

    Step = Callable[[torch.Tensor], torch.Tensor]

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # lambda as a share of the mean variance of an input
# the same where there are fewer pictures than inputs: of the mean eigenvalue
STRENGTHS_BY_PICTURE = (1e-3, 1e-2, 1e-1, 1.0)
# share of uncorrelated inputs in the covariance that a fully connected layer's directions are chosen by
PRIORS = (0.0, 0.1, 0.5)
DAMPINGS = (0.01, 0.1, 1.0)  # share of all directions beside those that the logits are sensitive to
COMBINATIONS = 16  # of the logits per picture, whose gradients stand for all
SAMPLES = 40_000  # places of the pictures that a convolution is fitted on, at most
CHUNK = 8  # pictures at a time
BLOCK = 768  # inputs at a time of which second moments are summed
KEPT_BYTES = 4_000_000  # a map larger than this per picture is computed again instead of stored


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is repaired: the original; the tensors that are left of it, one set per layer of the plan; the
    filters of each convolution that these are (absent: all); and the plan, which may ask for factorised
    layers."""

    original: checkpoints.Checkpoint
    left: "dict[str, torch.Tensor]"
    kept: "dict[str, torch.Tensor]"
    plan: chain.Plan


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Tensors [N, 3, px, px]; ``held`` chooses lambda and measures, and nothing is fitted on it."""

    fit: "torch.Tensor"
    held: "torch.Tensor"


@dataclasses.dataclass(frozen=True)
class Folders:
    """``scratch``: for maps that do not fit into memory; ``parts``: where each fitted layer is kept, so that
    interrupted work goes on behind the last one (``stage.unfinished``); None: nowhere."""

    scratch: Path
    parts: Path | None = None


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a layer was fitted. Errors are on held-out pictures, as a share of the variance of what the
    original says there (of a fully connected layer: of the logits that the original's later layers make of
    it): ``error_before`` with the old weights and a corrected bias, ``error_after`` with the new ones.
    ``strength``: lambda, None where the old weights were better than any fit."""

    layer: str
    samples: int
    strength: float | None
    rank: int | None
    error_before: float
    error_after: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def repair(
    problem: Problem, pictures: Pictures, folders: Folders, progress: Progress
) -> "tuple[dict[str, torch.Tensor], list[Fit]]":
    """The tensors of the plan, and how each fitted layer did. Layers that ``folders.parts`` holds are not
    fitted again."""
    import torch

    walk = _Walk(problem, pictures, folders)
    tensors: dict[str, torch.Tensor] = {}
    fits: list[Fit] = []
    names = [name for name, *_ in (*problem.plan.convs(), *problem.plan.linears())]
    with torch.inference_mode(), progress.task("fitting the layers", len(names)) as task:
        for name in names:
            made, fit = walk.layer(name)
            tensors |= made
            fits += [fit] if fit else []
            task.advance()
    return tensors, fits


class _Walk:
    """The original and the smaller network side by side, as far as they have been walked."""

    def __init__(self, problem: Problem, pictures: Pictures, folders: Folders) -> None:
        import torch

        self.problem, self.parts = problem, folders.parts
        self.counts = (len(pictures.fit), len(pictures.held))
        self.theirs = Maps(torch.cat([pictures.fit, pictures.held]), folders.scratch)
        self.ours = self.theirs  # until a layer differs

    def layer(self, name: str) -> "tuple[dict[str, torch.Tensor], Fit | None]":
        """Fit one layer of the plan, and move both networks past it."""
        old, plan = self.problem.original, self.problem.plan
        start, bias = self.problem.left[f"{name}.weight"], self.problem.left[f"{name}.bias"]
        factor = next((f for f in plan.factors if f.layer == name), None)
        tensors, fit = {f"{name}.weight": start, f"{name}.bias": bias}, None
        if factor or self.ours is not self.theirs:
            tensors, fit = self._fitted(name, start, factor)
        if self.ours is self.theirs and (factor or len(start) < len(old.tensors[f"{name}.weight"])):
            self.ours = self.theirs.fork()
        if self.ours is not self.theirs:
            self.ours.advance(*forward(plan, name, tensors))
        self.theirs.advance(*forward(old.plan, name, old.tensors))
        return tensors, fit

    def _fitted(
        self, name: str, start: "torch.Tensor", factor: chain.Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        """The layer as an interrupted run left it, or fitted now and kept."""
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        part = self.parts / f"{name}.safetensors" if self.parts else None
        if part and part.is_file():
            with safe_open(part, framework="pt") as file:
                return load_file(part), Fit(**json.loads(file.metadata()["fit"]))
        tensors, fit = (self._conv if start.dim() == 4 else self._linear)(name, start, factor)
        if part:
            with atomic_file(part) as temporary:
                save_file(
                    {key: tensor.contiguous() for key, tensor in tensors.items()},
                    temporary,
                    {"fit": json.dumps(fit.to_json())},
                )
        return tensors, fit

    def _conv(
        self, name: str, start: "torch.Tensor", factor: chain.Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        fitting, held = self._moments(name, start.shape[1])
        weight, strength = ridge(start.flatten(1).double(), fitting, held)
        last = f"{name}_expand" if factor else name
        if factor:
            tensors, effective = in_two(name, weight.view(start.shape), fitting.xx, factor)
        else:
            tensors, effective = {f"{name}.weight": weight.view(start.shape).float()}, weight
        tensors[f"{last}.bias"] = (fitting.mean_y - effective @ fitting.mean_x).float()
        errors = [held.error(w) / max(held.yy, 1e-30) for w in (start.flatten(1).double(), effective)]
        return tensors, Fit(name, fitting.n, strength, factor.rank if factor else None, *errors)

    def _moments(self, name: str, inputs: int) -> "tuple[Moments, Moments]":
        """Of the patches that the smaller network sees and what the original says at those places; fitting
        and held-out apart."""
        import torch

        weight, bias = (self.problem.original.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        rows = self.problem.kept.get(name, torch.arange(len(weight)))
        generator, first, found = torch.Generator().manual_seed(0), 0, []
        for count in self.counts:
            sums = Sums(9 * inputs, len(rows))
            for a in range(first, first + count, CHUNK):
                b = min(a + CHUNK, first + count)
                x = self.theirs.read(a, b)
                seen = x if self.ours is self.theirs else self.ours.read(a, b)
                area = x.shape[2] * x.shape[3]
                places = min(area, max(1, SAMPLES // self.counts[0]))
                chosen = torch.stack(
                    [torch.randperm(area, generator=generator)[:places] for _ in range(b - a)]
                )
                said = torch.nn.functional.conv2d(x, weight[rows], bias[rows], padding=1).flatten(2)
                said = said.gather(2, chosen[:, None].expand(-1, len(rows), -1))
                sums.add(patches(seen, chosen), said.transpose(1, 2).reshape(-1, len(rows)))
            found.append(sums.moments())
            first += count
        return found[0], found[1]

    def _linear(
        self, name: str, start: "torch.Tensor", factor: chain.Factor | None
    ) -> "tuple[dict[str, torch.Tensor], Fit]":
        import torch

        original, (fitted, total) = self.problem.original, (self.counts[0], sum(self.counts))
        weight, bias = (original.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        said = torch.nn.functional.linear(self.theirs.read(0, total), weight, bias)
        seen = self.ours.read(0, total)
        x, y = Centred.of(seen, fitted), Centred.of(said, fitted)
        new, strength = ridge_by_picture(start, x, y)
        judge = Behind(original, name, said[fitted:])
        tensors: dict[str, torch.Tensor] = {f"{name}.weight": new}
        effective: tuple[torch.Tensor, torch.Tensor | None] = (new, None)
        if factor:
            rows = important(original, name, said[:fitted])
            first, second = in_two_by_picture(
                new,
                x,
                rows,
                factor.rank,
                lambda *parts: judge.divergence(y.mean + linear_in_parts(x.held, *parts)),
            )
            tensors, effective = (
                {f"{name}_reduce.weight": first, f"{name}_expand.weight": second},
                (first, second),
            )
        last = f"{name}_expand" if factor else name
        tensors[f"{last}.bias"] = y.mean - linear_in_parts(x.mean[None], *effective)[0]
        errors = [
            judge.error(y.mean + linear_in_parts(x.held, *parts)) for parts in ((start, None), effective)
        ]
        return tensors, Fit(name, fitted, strength, factor.rank if factor else None, *errors)


def in_two(
    name: str, weight: "torch.Tensor", xx: "torch.Tensor", factor: chain.Factor
) -> "tuple[dict[str, torch.Tensor], torch.Tensor]":
    """The weights of the two parts of a factorised convolution, and what they are together, [n, 9 c].

    Args:
        weight: [n, c, 3, 3], float64; xx: centred second moments of its patches [9 c, 9 c].
    """
    if factor.kind == "spatial":
        made = separable.separate(weight, xx, factor.rank)
        horizontal = made.horizontal()
        tensors = {
            f"{name}_reduce.weight": made.vertical[..., None],
            f"{name}_expand.weight": horizontal[:, :, None],
        }
        effective = separable.joined(made.vertical, horizontal).flatten(1)
    else:
        flat = weight.flatten(1)
        basis = main_directions(flat @ xx @ flat.T, factor.rank)
        reduced = basis.T @ flat
        tensors = {
            f"{name}_reduce.weight": reduced.view(-1, *weight.shape[1:]),
            f"{name}_expand.weight": basis[:, :, None, None],
        }
        effective = basis @ reduced
    return {key: tensor.float().contiguous() for key, tensor in tensors.items()}, effective


def forward(plan: chain.Plan, name: str, tensors: "dict[str, torch.Tensor]") -> "tuple[Step, int]":
    """The step from a layer's input to the next one's, with ReLU, pooling and flattening, and its output's
    bytes per picture."""
    import torch
    from torch.nn import functional

    (b, last_in_block), (n, side) = _place(plan, name)
    parts = plan.parts(name, 0, n, side)

    def step(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            weight, bias = tensors[f"{part.name}.weight"], tensors.get(f"{part.name}.bias")
            if weight.dim() == 4:
                # channels-last is what torch's CPU convolutions are fast at
                x = x.contiguous(memory_format=torch.channels_last)
                x = functional.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2))
            else:
                x = functional.linear(x, weight, bias)
        x = x if name == "fc3" else x.relu_()
        if last_in_block:
            x = functional.max_pool2d(x, 2)
        return x.flatten(1) if last_in_block and b == len(plan.blocks) else x

    out_side = side // 2 if last_in_block else side
    return step, 4 * n * out_side**2


def _place(plan: chain.Plan, name: str) -> tuple[tuple[int, bool], tuple[int, int]]:
    """Block number of a layer (0: fully connected) and whether a pool follows it; its outputs and the side of
    its map."""
    if name.startswith("fc"):
        return (0, False), (next(n for known, _, n in plan.linears() if known == name), 1)
    b, j = (int(part) for part in name.removeprefix("conv").split("_"))
    return (b, j == len(plan.blocks[b - 1])), (plan.blocks[b - 1][j - 1], plan.input_px // 2 ** (b - 1))


class Maps:
    """What one network has computed of all pictures: maps stored on disk, and the steps since then, which are
    done again at each reading because their output would be too large to keep."""

    def __init__(
        self, stored: "torch.Tensor | _Stored", scratch: Path, steps: "tuple[Step, ...]" = ()
    ) -> None:
        self._stored, self._scratch, self._steps = stored, scratch, steps

    def fork(self) -> "Maps":
        """The same so far, to go another way from here."""
        return Maps(self._stored, self._scratch, self._steps)

    def read(self, a: int, b: int) -> "torch.Tensor":
        """The maps of the pictures from a to b: [b - a, channels, side, side], or [b - a, inputs] behind the
        flattening."""
        x = self._stored[a:b]
        for step in self._steps:
            x = step(x)
        return x.contiguous()

    def advance(self, step: "Step", picture_bytes: int) -> None:
        """Go on by one step."""
        self._steps = (*self._steps, step)
        if picture_bytes <= KEPT_BYTES:
            stored = _Stored(self._scratch)
            for a in range(0, len(self._stored), CHUNK):
                stored.append(self.read(a, min(a + CHUNK, len(self._stored))))
            self._stored, self._steps = stored, ()


class _Stored:
    """Rows of float32 in a file without a name, which goes when it is no longer used; read and written, not
    mapped, so that a full disk is an error and not a signal."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object
        self._shape: tuple[int, ...] = ()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: "torch.Tensor") -> None:
        self._shape = tuple(rows.shape[1:])
        self._file.write(rows.contiguous().numpy().tobytes())
        self._count += len(rows)

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        import torch

        size = 4 * math.prod(self._shape)
        self._file.seek(rows.start * size)
        content = bytearray((rows.stop - rows.start) * size)
        self._file.readinto(content)
        return torch.frombuffer(content, dtype=torch.float32).view(-1, *self._shape)


def patches(maps: "torch.Tensor", places: "torch.Tensor") -> "torch.Tensor":
    """The 3x3 surroundings of places [N, P] (row * side + column) in maps [N, C, H, W], zero outside: [N * P,
    C * 9]."""
    import torch

    n, channels, _, width = maps.shape
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1)).flatten(2)
    corner = places // width * (width + 2) + places % width
    taps = [
        padded.gather(2, (corner + dy * (width + 2) + dx)[:, None].expand(n, channels, -1))
        for dy in range(3)
        for dx in range(3)
    ]
    return torch.stack(taps, 2).permute(0, 3, 1, 2).reshape(-1, channels * 9)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Centred second moments of n samples of x [d] and y [k], in float64: xx [d, d], yx [k, d], yy the
    variance of y in all."""

    n: int
    xx: "torch.Tensor"
    yx: "torch.Tensor"
    yy: float
    mean_x: "torch.Tensor"
    mean_y: "torch.Tensor"

    def error(self, weight: "torch.Tensor") -> float:
        """Mean squared distance of y from weight [k, d] times x, both centred."""
        return max(0.0, float(self.yy - 2 * (weight * self.yx).sum() + ((weight @ self.xx) * weight).sum()))


class Sums:
    """Accumulates Moments from chunks of samples."""

    def __init__(self, inputs: int, outputs: int) -> None:
        import torch

        self._n, self._yy = 0, 0.0
        self._xx = torch.zeros(inputs, inputs, dtype=torch.float64)
        self._yx = torch.zeros(outputs, inputs, dtype=torch.float64)
        self._x, self._y = torch.zeros(inputs, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64)

    def add(self, x: "torch.Tensor", y: "torch.Tensor") -> None:
        """Samples x [m, d] and y [m, k]; products in float32 per chunk, sums in float64."""
        self._n += len(x)
        # the half above the diagonal: the rest of a symmetric product is not multiplied out
        for a in range(0, x.shape[1], BLOCK):
            b = a + BLOCK
            self._xx[a:b, a:] += x[:, a:b].T @ x[:, a:]
        self._yx += y.T @ x
        self._x += x.sum(0)
        self._y += y.sum(0)
        self._yy += float(y.double().square().sum())

    def moments(self) -> Moments:
        """Of everything added; the sums are used up."""
        import torch

        n = max(1, self._n)
        x, y = self._x / n, self._y / n
        for a in range(BLOCK, len(self._xx), BLOCK):
            self._xx[a:, a - BLOCK : a] = self._xx[a - BLOCK : a, a:].T
        xx, yx = self._xx.div_(n), self._yx.div_(n)
        return Moments(
            self._n, xx.sub_(torch.outer(x, x)), yx.sub_(torch.outer(y, x)), self._yy / n - float(y @ y), x, y
        )


def ridge(start: "torch.Tensor", fitting: Moments, held: Moments) -> "tuple[torch.Tensor, float | None]":
    """The weight [k, d] fitted with the strength that does best on the held-out samples, or ``start`` and
    None."""
    import torch

    missing = (fitting.yx - start @ fitting.xx).T
    best: tuple[float, torch.Tensor, float | None] = (held.error(start), start, None)
    for strength in STRENGTHS:
        damped = fitting.xx.clone()
        damped.diagonal().add_(strength * float(fitting.xx.diagonal().mean()) + 1e-12)
        weight = start + torch.cholesky_solve(missing, torch.linalg.cholesky(damped)).T
        error = held.error(weight)
        if error < best[0]:
            best = (error, weight, strength)
    return best[1], best[2]


def main_directions(covariance: "torch.Tensor", rank: int) -> "torch.Tensor":
    """The eigenvectors [n, rank] of the largest eigenvalues of [n, n]."""
    import torch

    vectors: torch.Tensor = torch.linalg.eigh(covariance).eigenvectors
    return vectors[:, -rank:]


@dataclasses.dataclass(frozen=True)
class Centred:
    """Rows of the fitting and of the held-out pictures, minus the mean of the fitting ones."""

    mean: "torch.Tensor"
    fit: "torch.Tensor"
    held: "torch.Tensor"

    @classmethod
    def of(cls, rows: "torch.Tensor", fitted: int) -> "Centred":
        mean = rows[:fitted].mean(0)
        return cls(mean, rows[:fitted] - mean, rows[fitted:] - mean)


def linear_in_parts(
    x: "torch.Tensor", first: "torch.Tensor", second: "torch.Tensor | None"
) -> "torch.Tensor":
    """x [N, d] through one fully connected layer or through two."""
    out = x @ first.T
    return out if second is None else out @ second.T


def ridge_by_picture(start: "torch.Tensor", x: Centred, y: Centred) -> "tuple[torch.Tensor, float | None]":
    """As ``ridge``, for a layer with more inputs than there are pictures: one unknown per picture (the dual
    form)."""
    import torch

    kernel = (x.fit @ x.fit.T).double()
    missing = (y.fit - x.fit @ start.T).double()
    across, known = (x.held @ x.fit.T).double(), x.held @ start.T
    best_error, best = float((y.held - known).square().sum()), None
    for strength in STRENGTHS_BY_PICTURE:
        damped = kernel.clone()
        damped.diagonal().add_(strength * float(kernel.diagonal().mean()) + 1e-12)
        share = torch.linalg.solve(damped, missing)
        error = float((y.held - known - (across @ share).float()).square().sum())
        if error < best_error:
            best_error, best = error, (share, strength)
    if best is None:
        return start, None
    return start + best[0].float().T @ x.fit, best[1]


@dataclasses.dataclass(frozen=True)
class Behind:
    """What the original's later layers make of a fully connected layer's outputs on the held-out pictures:
    ``said`` [N, n] are the original's."""

    original: checkpoints.Checkpoint
    layer: str
    said: "torch.Tensor"

    def logits(self, outputs: "torch.Tensor") -> "torch.Tensor":
        """[N, classes] of outputs [N, n] before the ReLU."""
        from torch.nn.functional import linear, relu

        for name in _later(self.layer):
            outputs = linear(
                relu(outputs), *(self.original.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
            )
        return outputs

    def error(self, outputs: "torch.Tensor") -> float:
        """Squared distance of the logits from the original's, as a share of their variance."""
        wanted = self.logits(self.said)
        return float(
            (self.logits(outputs) - wanted).square().sum()
            / (wanted - wanted.mean(0)).square().sum().clamp_min(1e-30)
        )

    def divergence(self, outputs: "torch.Tensor") -> float:
        """Mean KL from the original's answers, in nats."""
        from torch.nn.functional import kl_div

        found, wanted = (self.logits(of).log_softmax(1) for of in (outputs, self.said))
        return float(kl_div(found, wanted, reduction="batchmean", log_target=True))


def _later(layer: str) -> tuple[str, ...]:
    """The fully connected layers behind one."""
    names = ("fc1", "fc2", "fc3")
    return names[names.index(layer) + 1 :]


def important(original: checkpoints.Checkpoint, layer: str, said: "torch.Tensor") -> "torch.Tensor":
    """Directions [m, n] in which the logits are sensitive to a fully connected layer's outputs ``said`` [N,
    n] before the ReLU: the gradients, at each picture, of random combinations of the centred logits (their
    second moments are what a change of the outputs does to the logits, to first order)."""
    import torch

    tensors = original.tensors
    alive, x = [said > 0], said.relu()
    for name in _later(layer)[:-1]:
        x = torch.nn.functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        alive.append(x > 0)
        x = x.relu()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(said), COMBINATIONS, original.plan.classes, generator=generator)
    rows -= rows.mean(2, keepdim=True)
    for name, mask in zip(_later(layer)[::-1], alive[::-1], strict=True):
        rows = rows @ tensors[f"{name}.weight"] * mask[:, None]
    return rows.flatten(0, 1)


def in_two_by_picture(
    weight: "torch.Tensor",
    x: Centred,
    rows: "torch.Tensor",
    rank: int,
    cost: "Callable[[torch.Tensor, torch.Tensor], float]",
) -> "tuple[torch.Tensor, torch.Tensor]":
    """The two parts [rank, d] and [n, rank] of a fully connected layer, which keep the directions of its
    outputs that vary most where the logits are sensitive to them.

    With G the second moments of ``rows`` (``important``), damped, and C the covariance of the outputs, the
    best for tr (W - W') C_x (W - W')^T G are the main directions of G^1/2 C G^1/2. A few hundred pictures say
    too little of either: a share of what uncorrelated inputs would give joins C, all directions join G; how
    much, ``cost`` of the parts on held-out pictures says.
    """
    import torch

    said = x.fit @ weight.T
    seen = said.T @ said
    uncorrelated = (weight * x.fit.square().mean(0)) @ weight.T
    sensitive = rows.T @ rows
    sensitive /= sensitive.diagonal().mean().clamp_min(1e-30)
    best_cost, best = math.inf, None
    for damping in DAMPINGS:
        root = torch.linalg.cholesky(sensitive + damping * torch.eye(len(sensitive)))
        for prior in PRIORS:
            covariance = seen * ((1 - prior) / float(seen.trace())) + uncorrelated * (
                prior / float(uncorrelated.trace())
            )
            torch.manual_seed(0)  # the randomised method starts from random directions
            weighted = root.T @ covariance @ root
            directions, *_ = torch.svd_lowrank(weighted, q=min(rank + 32, len(weighted)), niter=4)
            directions = directions[:, :rank]
            first = directions.T @ root.T @ weight
            second = torch.linalg.solve_triangular(root.T, directions, upper=True)
            found = cost(first, second)
            if found < best_cost:
                best_cost, best = found, (first, second)
    assert best is not None  # there are candidates
    return best[0].contiguous(), best[1].contiguous()


def noise(count: int, px: int, seed: int) -> Pictures:
    """Normalised noise whose amplitude falls with frequency as that of photographs does (1/f), for want of
    any: some to fit, a fifth to choose with."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    frequency = torch.fft.fftfreq(px)[:, None].square() + torch.fft.rfftfreq(px).square()
    spectrum = torch.fft.rfft2(
        torch.randn(count, 3, px, px, generator=generator)
    ) / frequency.sqrt().clamp_min(1 / px)
    grey = spectrum.mean(1, keepdim=True) * 3**0.5  # photographs are mostly grey
    maps = torch.fft.irfft2(0.3 * spectrum + 0.7 * grey, s=(px, px))
    maps = (maps - maps.mean((2, 3), keepdim=True)) / maps.std((1, 2, 3), keepdim=True)
    maps = maps + 0.5 * torch.randn(count, 3, 1, 1, generator=generator)
    return Pictures(maps[count // 5 :], maps[: count // 5])


def loss(
    original: checkpoints.Checkpoint, smaller: checkpoints.Checkpoint, pictures: "torch.Tensor"
) -> dict[str, Any]:
    """What was lost on pictures [N, 3, px, px] that nothing was fitted on: agreement of the top-1, mean KL in
    nats, n."""
    import torch

    said = []
    with torch.inference_mode():
        for checkpoint in (original, smaller):
            network = checkpoint.model().to(memory_format=torch.channels_last)
            parts = [
                network(pictures[k : k + CHUNK].contiguous(memory_format=torch.channels_last))
                for k in range(0, len(pictures), CHUNK)
            ]
            said.append(torch.cat(parts).log_softmax(1))
    theirs, ours = said
    divergence = torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    agreement = float((theirs.argmax(1) == ours.argmax(1)).float().mean())
    return {"agreement": agreement, "kl": float(divergence), "n": len(pictures), "against": "the checkpoint"}
