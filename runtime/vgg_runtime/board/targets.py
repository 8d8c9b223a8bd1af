"""The kinds of core that a model can be made for, and which of them a device has. The exporter makes builds
for them, and the device chooses its build by them."""

import dataclasses
import functools
from collections.abc import Sequence

from vgg_runtime.result import Device

from .device import describe, has_dot_product


@dataclasses.dataclass(frozen=True)
class Target:
    """What suits a kind of core.

    ``signed_activations`` means S8 instead of U8, ``reduce_range`` 7-bit weights. The channels that pruning
    and factorising leave are a multiple of ``width_multiple``, for onnxruntime's fast int8 kernels. The
    instruction counts of ``winograd_core`` decide which fp32 convolutions become Winograd's; it is None where
    int8 is faster than those. ``ram_bytes`` is that of the smallest such board, None where there is plenty.
    """

    name: str
    machine: str
    signed_activations: bool
    reduce_range: bool
    width_multiple: int
    winograd_core: str | None
    ram_bytes: int | None
    reason: str

    @property
    def dot_product(self) -> bool:
        """Whether int8 is much faster than float there."""
        return self.name in ("pi5", "x86-vnni")


ARM, X86 = "aarch64", "x86_64"
GIB = 1 << 30
TARGETS = {
    t.name: t
    for t in (
        Target(
            "pi5",
            ARM,
            True,
            False,
            16,
            None,
            2 * GIB,
            "Cortex-A76 with dot product: signed activations take 8 % fewer instructions",
        ),
        Target(
            "pi4",
            ARM,
            True,
            False,
            8,
            "cortex-a72",
            GIB,
            "Cortex-A72 without dot product: signed activations take 7 % fewer instructions",
        ),
        Target("pi3", ARM, True, False, 8, "cortex-a53", GIB, "Cortex-A53 without dot product, as pi4"),
        Target(
            "zero2",
            ARM,
            True,
            False,
            8,
            "cortex-a53",
            GIB // 2,
            "Cortex-A53 without dot product, as pi4, and 512 MB",
        ),
        Target(
            "x86-vnni",
            X86,
            False,
            False,
            16,
            None,
            None,
            "x86 with VNNI: unsigned activations and signed weights are the native form",
        ),
        Target(
            "x86-avx2",
            X86,
            False,
            True,
            16,
            None,
            None,
            "x86 without VNNI adds pairs of products in 16 bits: 7-bit weights keep them from saturating",
        ),
    )
}
_CORES = {"Cortex-A53": "pi3", "Cortex-A72": "pi4", "Cortex-A76": "pi5"}


def of_device(device: Device) -> Target:
    """The target of a device, or the nearest one."""
    board = device.board.lower()
    # others have a "Zero 2" too, with faster cores
    if "zero 2" in board and ("raspberry pi" in board or _CORES.get(device.cpu or "") == "pi3"):
        return TARGETS["zero2"]
    if device.cpu in _CORES:
        return TARGETS[_CORES[device.cpu]]
    fast = bool(has_dot_product(device.features))
    if device.machine == X86:
        return TARGETS["x86-vnni" if fast else "x86-avx2"]
    return TARGETS["pi5" if fast else "pi4"]


@functools.cache
def here() -> Target:
    """The target of this machine, or the nearest one."""
    return of_device(describe(1))


def nearest(target: Target, made_for: Sequence[Sequence[str]]) -> int:
    """The index of the build that suits a core best.

    ``made_for`` has the names of the targets of each build; a build without any was made for every core.
    """
    distances = [_distance(target, names) for names in made_for]
    return distances.index(min(distances))


def saturates(target: Target, made_for: Sequence[str]) -> bool:
    """Whether a build's int8 products overflow in a core's fastest kernels: the core needs 7-bit weights, and
    the build has none."""
    return (
        target.reduce_range
        and bool(made_for)
        and not any(TARGETS[name].reduce_range for name in made_for if name in TARGETS)
    )


def _distance(target: Target, made_for: Sequence[str]) -> float:
    """How badly a build suits a core: 0 if it was made for it, 0.5 if for any core, more if for others.

    Builds that would overflow come last: they need slower kernels (``session.exact``).
    """
    if target.name in made_for:
        return 0
    if not made_for:
        return 0.5
    others = [TARGETS[name] for name in made_for if name in TARGETS]
    apart = [
        1 + 2 * (target.machine != other.machine) + (target.dot_product != other.dot_product)
        for other in others
    ]
    return 8 * saturates(target, made_for) + min(apart, default=9)
