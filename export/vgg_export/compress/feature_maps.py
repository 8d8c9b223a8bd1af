"""The feature maps of one network on all pictures, layer by layer, stored on disk."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.network import chain

if TYPE_CHECKING:
    import torch

    Step = Callable[[torch.Tensor], torch.Tensor]


CHUNK = 8  # pictures at a time
KEPT_BYTES = 4_000_000  # a map larger than this per picture is computed again instead of stored


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as tensors [N, 3, px, px]. ``fit``: layers are fitted on them; ``held``: they choose lambda
    and measure."""

    fit: "torch.Tensor"
    held: "torch.Tensor"


def forward(plan: chain.Plan, name: str, tensors: "dict[str, torch.Tensor]") -> "tuple[Step, int]":
    """The step from a layer's input to the next layer's input, with ReLU, pooling and flattening, and the
    bytes per picture of its output."""
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
    """The block number of a layer (0: fully connected) and whether a pool follows it; its number of outputs
    and the side of its map."""
    if name.startswith("fc"):
        return (0, False), (next(n for known, _, n in plan.linears() if known == name), 1)
    b, j = (int(part) for part in name.removeprefix("conv").split("_"))
    return (b, j == len(plan.blocks[b - 1])), (plan.blocks[b - 1][j - 1], plan.input_px // 2 ** (b - 1))


class Maps:
    """The feature maps of one network for all pictures: maps stored on disk, and the steps after them. These
    steps run again at each reading because their output would be too large to keep."""

    def __init__(
        self, stored: "torch.Tensor | _Stored", scratch: Path, steps: "tuple[Step, ...]" = ()
    ) -> None:
        self._stored, self._scratch, self._steps = stored, scratch, steps

    def fork(self) -> "Maps":
        """A copy that can advance by other steps from here on."""
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
    """Rows of float32 in a temporary file without a name. The file is read and written, not mapped, so that a
    full disk raises an error instead of a signal."""

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
    """The 3x3 patches [N * P, C * 9] around places [N, P] (row * side + column) in maps [N, C, H, W], zero
    outside."""
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


def noise(count: int, px: int, seed: int) -> Pictures:
    """Normalised noise in place of pictures, with the spectrum of photographs: the amplitude falls with the
    frequency (1/f). A fifth of the images chooses; the others fit."""
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
