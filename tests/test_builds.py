"""The builds of a variant for several cores, of which some get a mixture of int8 and float."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from networks_to_mix import factorised

from vgg_export.builds import Integers
from vgg_export.bundle import writer
from vgg_export.core import cache
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.graphs import export
from vgg_export.int8 import mixed_precision, quantize
from vgg_export.int8.measured import Quantized
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import QuantizeOptions
from vgg_runtime.board.targets import TARGETS, nearest


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> cache.Artifact:
    folder = tmp_path_factory.mktemp("builds")
    checkpoints.save(factorised(), folder / "c.safetensors")
    return export.run(cache.of(folder / "c.safetensors"), folder / "float.onnx", Quiet())


@pytest.fixture
def made_for(exported: cache.Artifact, splits: Splits) -> "Made":
    return Made(exported, splits)


class Made:
    """Makes the builds of a variant called "compact"."""

    def __init__(self, exported: cache.Artifact, splits: Splits) -> None:
        self.exported, self.splits = exported, splits

    def quantize(self, output: Path, target: str) -> cache.Artifact:
        wanted = QuantizeOptions(target, "minmax", float_layers=0)
        return quantize.run(self.exported, self.splits, 8, output, wanted, Quiet())

    def __call__(
        self, *cores: str, mixed: bool = True, bits_by_core: bool = False
    ) -> tuple[tuple[str, ...], Sequence[writer.Build]]:
        own = self.quantize(self.exported.path.with_name(f"{cores[0]}.onnx"), cores[0])
        exported = self.exported if mixed else None
        return Integers("compact", own, cores, self.quantize, exported, bits_by_core, Quiet()).builds()


def test_cores_without_a_dot_product_get_a_build_of_their_own(made_for: Made) -> None:
    own, others = made_for("x86-vnni", "pi5", "pi4", "zero2")
    assert own == ("x86-vnni",)
    signed, mixed = others
    assert (signed.id, signed.form, signed.targets, signed.figures) == (
        "compact.pi5",
        "",
        ("pi5",),
        "compact",
    )
    # both have the same kernels, so that one file serves both
    assert (mixed.id, mixed.targets, mixed.figures) == ("compact.pi4", ("pi4", "zero2"), "compact.pi4")
    told = mixed.model.read(mixed_precision.MixedPrecision).mixed
    assert mixed.form == told.form
    assert signed.model.read(Quantized).target == "pi5"


def test_the_int8_model_stays_for_cores_with_a_dot_product(made_for: Made) -> None:
    """Where only such cores were asked for that have a mixed build, it is still there for --tune, and a Pi 5
    takes it."""
    own, (mixed,) = made_for("pi4", "pi3")
    assert own == ("pi5",)
    assert (mixed.id, mixed.targets) == ("compact.pi4", ("pi4", "pi3"))
    targets = [own, mixed.targets]
    assert [nearest(TARGETS[name], targets) for name in ("pi5", "pi4", "pi3", "zero2")] == [0, 1, 1, 1]
    own, others = made_for("x86-avx2", "pi4")
    assert own == ("x86-avx2",)
    assert [(b.id, b.targets, b.figures) for b in others] == [
        ("compact.pi5", ("pi5",), "compact.pi5"),  # its weights have 8 bits
        ("compact.pi4", ("pi4",), "compact.pi4"),
    ]


def test_without_a_gain_the_builds_are_those_of_int8(
    made_for: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = made_for("x86-vnni", "pi5", "pi4", mixed=False)
    assert plain[0] == ("x86-vnni",)
    assert [(b.id, b.targets) for b in plain[1]] == [("compact.pi5", ("pi5", "pi4"))]
    assert made_for("pi4", mixed=False) == (("pi4",), ())
    caplog.set_level("INFO")
    monkeypatch.setattr(mixed_precision, "LEAST_GAIN", 0.9)
    own, others = made_for("pi5", "pi4")
    assert (own, others) == (("pi5", "pi4"), ())
    assert "compact: no mixed build for pi4: the cheapest mixture of int8 and float saves" in caplog.text


def test_float_weights_must_leave_a_board_room(
    made_for: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("vgg_export.builds.has_room", lambda target, needed: target.name != "zero2")
    own, (mixed,) = made_for("zero2", "pi4")
    assert (own, mixed.id, mixed.targets) == (("zero2",), "compact.pi4", ("pi4",))
    assert "compact: no mixed build for zero2, whose memory is too small for its float weights" in caplog.text


def test_cores_that_take_other_bits_get_a_model_of_their_own(made_for: Made) -> None:
    own, (other,) = made_for("pi5", "pi4", mixed=False, bits_by_core=True)
    assert own == ("pi5",)
    assert (other.id, other.targets, other.figures) == ("compact.pi4", ("pi4",), "compact.pi4")
    assert other.model.read(Quantized).target == "pi4"
    both, nothing = made_for("pi5", "pi4", mixed=False)
    assert (both, nothing) == (("pi5", "pi4"), ())
