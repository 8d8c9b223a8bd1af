"""What the original computes on the pictures that layers are fitted on, recorded once: the outputs of its
layers, of a convolution at sampled places. Every smaller network is fitted to these records, so the original
is walked once, however many networks are made of it. Of several processes each records its share."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vgg_export.core import processes
from vgg_export.core.devices import here
from vgg_export.core.files import atomic_file, reserved_array
from vgg_export.core.progress import Progress
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network.chain import Chain, Conv, Site

from .feature_maps import Maps, Pictures, begun, forward, halves

if TYPE_CHECKING:
    import torch

# Places that a convolution is fitted on, for each of its inputs (of one output), and at least and most. With
# n samples of d inputs a least-squares fit adds d / n to the error on other pictures. The demo's network
# without half of its filters, repaired, is right on 90.2 % of 1,200 pictures with 8,000 at least, on 92.2 %
# with 20,000, and on 92.5 % with 40,000 for every layer.
PLACES_PER_INPUT = 8
LEAST_PLACES, MOST_PLACES = 20_000, 40_000

Watch = Callable[[Site, int, "torch.Tensor", "torch.Tensor | None"], None]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Outputs of an original's layers, before the activation, on the fitting and then the held-out pictures.
    ``counts``: the numbers of both, of all processes. ``folder``: a file per layer, float32: [pictures,
    places, filters] of a convolution, [pictures, outputs] of a fully connected layer, of this process's
    pictures. ``maps``: the input of the layer ``first``, the first one that is recorded, where it is still at
    hand."""

    folder: Path
    counts: tuple[int, int]
    first: str
    maps: Maps | None = None

    def places(self, site: Site) -> "torch.Tensor":
        """The sampled places [pictures, places] (row * columns + column) of a convolution's outputs, for this
        process's pictures."""
        return places_of(site, self.counts)[processes.shares(*self.counts)]

    @property
    def own(self) -> tuple[int, int]:
        """How many of the fitting and of the held-out pictures are this process's."""
        fitted, held = (len(processes.share(count)) for count in self.counts)
        return fitted, held

    def gathered(self, rows: "torch.Tensor") -> "torch.Tensor":
        """The rows of all pictures [sum(counts), ...], of which this process has ``rows`` of its own."""
        return processes.gathered(rows, processes.shares(*self.counts), sum(self.counts))

    def said(self, name: str) -> "torch.Tensor":
        """The outputs of a layer for this process's pictures."""
        import numpy as np
        import torch

        return torch.from_numpy(np.load(_file(self.folder, name), mmap_mode="c"))


def places_of(site: Site, counts: tuple[int, int]) -> "torch.Tensor":
    """Places [pictures, places] of a convolution's outputs, drawn with a fixed seed: as many as its number of
    inputs asks for, spread evenly over the ``counts[0]`` fitting pictures."""
    import torch

    area, each = math.prod(site.outputs[1:]), _places_each(site, counts)
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(area, generator=generator)[:each] for _ in range(sum(counts))])


def _places_each(site: Site, counts: tuple[int, int]) -> int:
    conv = site.layer
    assert isinstance(conv, Conv)
    inputs = site.channels * math.prod(conv.kernel)
    wanted = min(MOST_PLACES, max(LEAST_PLACES, PLACES_PER_INPUT * inputs))
    return min(math.prod(site.outputs[1:]), max(1, wanted // counts[0]))


def record(
    original: checkpoints.Checkpoint,
    pictures: Pictures,
    first: str,
    folder: Path,
    scratch: Path,
    progress: Progress,
    watch: Watch | None = None,
) -> Recorded:
    """Walk an original once, from its input to its last layer, and record the layers from ``first`` on.

    Args:
        pictures: this process's share of them.
        folder: where the records stay; a finished one is not made again.
        scratch: a folder for maps that do not fit into memory.
        watch: is shown each recorded layer, chunk by chunk: the layer, the number of the chunk's first
            picture, its inputs, and the places of a convolution that are recorded.
    """
    import torch

    chain, tensors = original.chain, original.tensors
    fitted, held = (int(processes.total(len(rows))) for rows in (pictures.fit, pictures.held))
    counts = (fitted, held)
    names = [site.name for site in chain.sites]
    later = names[names.index(first) :]
    there = processes.least(all(_file(folder, name).is_file() for name in later))
    if watch is None and there:
        return Recorded(folder, counts, first)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), progress.task("walking the original", len(names)) as task:
        maps = begun(chain, torch.cat([pictures.fit, pictures.held]), tensors, scratch)
        for name in names[: -len(later)]:
            maps.advance(*forward(chain, name, tensors))
            task.advance()
        start = maps.fork()
        for name in later:
            _record(chain.site(name), maps, halves(chain, name, tensors), counts, folder, watch)
            task.advance()
    return Recorded(folder, counts, first, start)


def _record(
    site: Site,
    maps: Maps,
    layer: "tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor], int]",
    counts: tuple[int, int],
    folder: Path,
    watch: Watch | None,
) -> None:
    own = processes.shares(*counts)
    places = places_of(site, counts)[own] if isinstance(site.layer, Conv) else None
    shape = (len(own), *(() if places is None else (places.shape[1],)), site.layer.outputs)
    with atomic_file(_file(folder, site.name)) as temporary:
        rows = reserved_array(temporary, shape)

        def seen(a: int, x: "torch.Tensor", y: "torch.Tensor") -> None:
            chunk = None if places is None else here(places[a : a + len(y)])
            rows[a : a + len(y)] = (y if chunk is None else at_places(y, chunk)).cpu()
            if watch:
                watch(site, a, x, chunk)

        maps.advance_watched(layer, seen)


def at_places(maps: "torch.Tensor", places: "torch.Tensor") -> "torch.Tensor":
    """The values [N, P, C] of maps [N, C, H, W] at ``places`` [N, P] (row * columns + column)."""
    return maps.flatten(2).gather(2, places[:, None].expand(-1, maps.shape[1], -1)).transpose(1, 2)


def disk_bytes(chain: Chain, counts: tuple[int, int]) -> int:
    """The size of the records of a whole chain, about."""
    total = 0
    for site in chain.sites:
        places = _places_each(site, counts) if isinstance(site.layer, Conv) else 1
        total += 4 * sum(counts) * places * site.layer.outputs
    return total


def _file(folder: Path, name: str) -> Path:
    """The record of a layer for this process's pictures."""
    world = processes.world()
    return folder / (f"{name}.npy" if world == 1 else f"{name}.{processes.rank()}-of-{world}.npy")
