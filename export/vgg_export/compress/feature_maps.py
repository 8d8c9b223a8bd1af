"""The feature maps of one network on all pictures, layer by layer, stored on disk."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core.devices import here
from vgg_export.network.chain import Chain, Conv
from vgg_runtime.bundle.input_spec import GREY, InputSpec, for_input

from . import layers

if TYPE_CHECKING:
    import torch

    from .layers import Step


CHUNK = 8  # pictures at a time
KEPT_BYTES = 4_000_000  # a map larger than this per picture is computed again instead of stored


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures as tensors [N, channels, px, px]. ``fit``: layers are fitted on them; ``held``: they choose
    lambda and measure."""

    fit: "torch.Tensor"
    held: "torch.Tensor"


def halves(chain: Chain, name: str, tensors: "Mapping[str, torch.Tensor]") -> "tuple[Step, Step, int]":
    """From a layer's input to its outputs before the activation, from there to the next layer's input
    (activation, pooling, flattening; it may change its input in place), and the bytes per picture of the
    latter."""
    import torch

    site = chain.site(name)
    parts = site.parts()
    own = {
        name: here(tensors[name])
        for part in parts
        for name in (f"{part.name}.weight", f"{part.name}.bias")
        if name in tensors
    }

    def weigh(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            if part.kernel:
                # channels-last is what torch's CPU convolutions are fast at
                x = x.contiguous(memory_format=torch.channels_last)
            x = layers.weighted(part, x, own[f"{part.name}.weight"], own.get(f"{part.name}.bias"))
        return x

    return weigh, layers.behind(site, tensors), 4 * math.prod(site.gives)


def forward(chain: Chain, name: str, tensors: "Mapping[str, torch.Tensor]") -> "tuple[Step, int]":
    """The step from a layer's input to the next layer's input, and the bytes per picture of its output."""
    weigh, rest, picture_bytes = halves(chain, name, tensors)
    return lambda x: rest(weigh(x)), picture_bytes


def begun(
    chain: Chain, pictures: "torch.Tensor", tensors: "Mapping[str, torch.Tensor]", scratch: Path
) -> "Maps":
    """The maps that the first convolution or fully connected layer reads."""
    maps = Maps(pictures, scratch)
    if step := layers.before_first(chain, tensors):
        maps.advance(step, 4 * math.prod(chain.sites[0].inputs))
    return maps


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
        """The maps of the pictures from a to b: [b - a, channels, height, width], or [b - a, inputs] behind
        the flattening."""
        x = here(self._stored[a:b])
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

    def advance_watched(
        self, halves: "tuple[Step, Step, int]", watch: "Callable[[int, torch.Tensor, torch.Tensor], None]"
    ) -> None:
        """Go on past a layer (``halves``) and show each chunk to ``watch``: the number of its first picture,
        the layer's input and its outputs before the activation. Nothing is computed twice for that."""
        weigh, rest, picture_bytes = halves
        stored = _Stored(self._scratch) if picture_bytes <= KEPT_BYTES else None
        for a in range(0, len(self._stored), CHUNK):
            x = self.read(a, min(a + CHUNK, len(self._stored)))
            y = weigh(x)
            watch(a, x, y)
            if stored is not None:
                stored.append(rest(y))
        if stored is None:
            self._steps = (*self._steps, lambda x: rest(weigh(x)))
        else:
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
        self._file.write(rows.cpu().contiguous().numpy().tobytes())
        self._count += len(rows)

    def __getitem__(self, rows: slice) -> "torch.Tensor":
        import torch

        size = 4 * math.prod(self._shape)
        self._file.seek(rows.start * size)
        content = bytearray((rows.stop - rows.start) * size)
        self._file.readinto(content)
        return torch.frombuffer(content, dtype=torch.float32).view(-1, *self._shape)


def patches(maps: "torch.Tensor", places: "torch.Tensor", conv: Conv) -> "torch.Tensor":
    """The patches [N * P, C * height * width] that a convolution of maps [N, C, H, W] sees at ``places`` [N,
    P] (row * columns + column) of its output; zero outside."""
    import torch

    n, channels, _, width = maps.shape
    (height, across), (down, right) = conv.kernel, conv.stride
    top, before, bottom, behind = conv.padding
    padded = torch.nn.functional.pad(maps, (before, behind, top, bottom)).flatten(2)
    row = before + width + behind
    columns = (row - across) // right + 1
    corner = places // columns * (down * row) + places % columns * right
    taps = [
        padded.gather(2, (corner + dy * row + dx)[:, None].expand(n, channels, -1))
        for dy in range(height)
        for dx in range(across)
    ]
    return torch.stack(taps, 2).permute(0, 3, 1, 2).reshape(-1, channels * height * across)


def noise(count: int, spec: InputSpec, seed: int) -> Pictures:
    """Noise in place of pictures, with the spectrum of photographs: the amplitude falls with the frequency
    (1/f). Its values have the mean and deviation of photographs, normalised as the network wants them. A
    fifth of the images chooses; the others fit."""
    import torch

    generator, (channels, px) = torch.Generator().manual_seed(seed), (spec.channels, spec.px)
    frequency = torch.fft.fftfreq(px)[:, None].square() + torch.fft.rfftfreq(px).square()
    spectrum = torch.fft.rfft2(
        torch.randn(count, channels, px, px, generator=generator)
    ) / frequency.sqrt().clamp_min(1 / px)
    grey = spectrum.mean(1, keepdim=True) * channels**0.5  # photographs are mostly grey
    maps = torch.fft.irfft2(0.3 * spectrum + 0.7 * grey, s=(px, px))
    maps = (maps - maps.mean((2, 3), keepdim=True)) / maps.std((1, 2, 3), keepdim=True)
    maps = maps + 0.5 * torch.randn(count, channels, 1, 1, generator=generator)
    scale, shift = _normalisation(spec)
    maps = maps * scale + shift
    return Pictures(maps[count // 5 :], maps[: count // 5])


def _normalisation(spec: InputSpec) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scale and shift [channels, 1, 1] that make values normalised with ImageNet's statistics those that a
    network reads: 1 and 0 where it uses these."""
    import torch

    usual = for_input(spec.px)
    mean, std = list(usual.mean), list(usual.std)
    if spec.channels == GREY:
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    elif spec.bgr:
        mean, std = mean[::-1], std[::-1]
    scale = [known / own for known, own in zip(std, spec.std, strict=True)]
    shift = [(known - own) / by for known, own, by in zip(mean, spec.mean, spec.std, strict=True)]
    return torch.tensor(scale).view(-1, 1, 1), torch.tensor(shift).view(-1, 1, 1)
