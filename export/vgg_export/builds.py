"""The builds of a variant for the cores that were asked for.

int8: a type of activations and a range of weights per core, and for cores without a dot product a mixture of
int8 and float, if that is clearly cheaper. Float: Winograd's convolutions for those cores.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vgg_runtime.board.targets import TARGETS, Target

from .bundle import writer
from .core import cache
from .core.errors import NothingToGainError
from .core.progress import Progress
from .graphs import winograd
from .int8 import activation_signedness, mixed_precision
from .int8.measured import Quantized

log = logging.getLogger(__name__)


class Form(NamedTuple):
    """What a core wants of an int8 model: 7-bit weights, signed activations, and, where the bits of fully
    connected layers are chosen by the core, fewer than 8 of these."""

    reduced: bool
    signed: bool
    few_bits: bool

    @property
    def weights(self) -> tuple[bool, bool]:
        """What decides the weights; the activations can be retyped."""
        return self.reduced, self.few_bits


def beside(path: Path, suffix: str) -> Path:
    """The path of a file that belongs to another one."""
    return path.with_name(f"{path.stem}-{suffix}{path.suffix}")


@dataclasses.dataclass(frozen=True)
class Integers:
    """Makes the builds of an int8 variant.

    ``variant``: its id. ``made``: its own model, for the first of ``cores``, which are keys of TARGETS.
    ``quantize``: makes its model for another core in another file. ``exported``: its float model where a
    mixture of both is to be tried, else None. ``bits_by_core``: whether ``quantize`` takes fewer bits for
    some cores only.
    """

    variant: str
    made: cache.Artifact
    cores: Sequence[str]
    quantize: Callable[[Path, str], cache.Artifact]
    exported: cache.Artifact | None
    bits_by_core: bool
    progress: Progress

    def builds(self) -> tuple[tuple[str, ...], tuple[writer.Build, ...]]:
        """The cores that the variant's own model is for, and the builds for the others.

        A core with a mixed build is in no other build's list. The int8 model stays in the bundle for
        ``compare.py --tune``. If it is left for none of the cores, its list names those that it suits best.
        """
        own: tuple[str, ...] = ()
        others: list[writer.Build] = []
        # the model of each kind of weights, and the id of the build whose figures hold for it
        known: dict[tuple[bool, bool], tuple[cache.Artifact, str]] = {}
        for form, cores in self._forms().items():
            source = self._source(form, cores, known)
            mixed = tuple(self._mixed(source, cores))
            left = _left(form, cores, {name for build in mixed for name in build.targets})
            build_id = f"{self.variant}.{left[0]}" if known else self.variant
            _, figures = known.setdefault(form.weights, (source, build_id))
            if source is self.made:
                own = left
            else:
                others.append(writer.Build(build_id, "", left, source, figures))
            others += mixed
        return own, tuple(others)

    def _forms(self) -> dict[Form, list[str]]:
        """The cores by the form of int8 that suits them."""
        forms: dict[Form, list[str]] = {}
        for name in self.cores:
            forms.setdefault(self._form(TARGETS[name]), []).append(name)
        return forms

    def _form(self, target: Target) -> Form:
        return Form(target.reduce_range, target.signed_activations, self.bits_by_core and target.dot_product)

    def _source(
        self, form: Form, cores: Sequence[str], known: Mapping[tuple[bool, bool], tuple[cache.Artifact, str]]
    ) -> cache.Artifact:
        """The model of a form: the variant's own, or one with the same range of weights and other
        activations, or a new one."""
        if not known:
            return self.made
        if form.weights not in known:
            return self.quantize(beside(self.made.path, cores[0]), cores[0])
        source, _ = known[form.weights]
        if TARGETS[source.read(Quantized).target].signed_activations == form.signed:
            return source
        output = beside(self.made.path, f"{cores[0]}-retyped")
        return activation_signedness.run(source, cores[0], output, self.progress)

    def _mixed(self, source: cache.Artifact, cores: Sequence[str]) -> Iterator[writer.Build]:
        """The builds in which some layers are float; cores that get the same graph share one."""
        if self.exported is None:
            return
        found: dict[str, writer.Build] = {}
        for name in cores:
            target = TARGETS[name]
            if target.winograd_core is None:
                continue
            output = beside(self.made.path, f"{name}-mixed")
            try:
                mixed = mixed_precision.run(self.exported, source, name, output, self.progress)
            except NothingToGainError as error:
                log.info("%s: no mixed build for %s: %s", self.variant, name, error)
                continue
            told = mixed.read(mixed_precision.MixedPrecision).mixed
            if not has_room(target, told.weight_bytes.mixed):
                log.info(
                    "%s: no mixed build for %s, whose memory is too small for its float weights",
                    self.variant,
                    name,
                )
                continue
            _share(found, mixed, writer.Build(f"{self.variant}.{name}", told.form, (), mixed, ""), name)
        for build in found.values():
            yield dataclasses.replace(build, figures=build.id)  # it is another function


def _share(found: dict[str, writer.Build], made: cache.Artifact, new: writer.Build, target: str) -> None:
    """Add a target to the build with this model; ``new`` if there is none yet."""
    known = found.get(made.sha256) or new
    found[made.sha256] = dataclasses.replace(known, targets=(*known.targets, target))


def _left(form: Form, cores: Sequence[str], mixed: Collection[str]) -> tuple[str, ...]:
    """The cores of an int8 model that have no mixed build; if none is left, those with a dot product that it
    suits."""
    left = tuple(name for name in cores if name not in mixed)
    return left or tuple(t.name for t in TARGETS.values() if _suits(t, form) and t.dot_product)


def _suits(target: Target, form: Form) -> bool:
    return (target.reduce_range, target.signed_activations) == (form.reduced, form.signed)


def float_builds(
    variant: str, made: cache.Artifact, cores: Sequence[str], progress: Progress
) -> tuple[writer.Build, ...]:
    """Builds of a float variant with Winograd's convolutions for the cores whose int8 is no faster than
    float, where any layer gains by them."""
    others: dict[str, writer.Build] = {}
    for name in cores:
        core = TARGETS[name].winograd_core
        if core is None:
            continue
        with contextlib.suppress(NothingToGainError):
            rewritten = winograd.run(made, core, beside(made.path, core), progress)
            told = rewritten.read(winograd.Rewritten).winograd
            needed = made.path.stat().st_size + told.weight_bytes.rewritten - told.weight_bytes.direct
            if not has_room(TARGETS[name], needed):
                log.info(
                    "%s: no Winograd build for %s, whose memory is too small for the transformed weights",
                    variant,
                    name,
                )
                continue
            form = (
                f"{len(told.layers)} convolutions as Winograd's, which take fewer instructions on a"
                f" {core.title()}"
            )
            _share(others, rewritten, writer.Build(f"{variant}.{name}", form, (), rewritten, variant), name)
    return tuple(others.values())


def has_room(target: Target, weight_bytes: int) -> bool:
    """Whether weights of this size, after what is done to them while they are loaded, leave half of a board's
    memory free."""
    return target.ram_bytes is None or weight_bytes <= target.ram_bytes / 2
