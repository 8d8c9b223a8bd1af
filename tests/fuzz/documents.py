"""A manifest and a result as seeds: small, with every kind of field filled."""

from typing import Any

from vgg_runtime import result
from vgg_runtime.bundle.input_spec import for_input
from vgg_runtime.bundle.manifest import Build, FileEntry, Manifest, Sample, SessionSettings, Variant

SPEC = for_input(32)


def entry(path: str) -> FileEntry:
    return FileEntry(path, "0" * 64, 10)


def evaluation() -> result.Evaluation:
    share = result.Proportion(0.9, 10, (0.6, 1.0))
    return result.Evaluation(
        n=10,
        top1=share,
        chance=0.2,
        top5=share,
        agreement=share,
        loss_error_points=1.0,
        kl_mean=0.1,
        kl_p95=0.2,
        loss=result.Loss(1.0, 0.5, 10, 0.3, 20),
    )


def variant(name: str) -> Variant:
    sessions = {"fast": SessionSettings(), "lean": SessionSettings(arena=False, config={"a": "b"})}
    build = Build(
        name, "plain", ("pi4",), entry(f"models/{name}.onnx"), entry("models/w"), sessions, evaluation()
    )
    steps = (result.StepLoss("prune", 0.9, 0.1, 10, "baseline"),)
    return Variant(name, name, "for tests", "fp32", 10, 20, SPEC, ("prune",), (build,), steps)


def manifest() -> dict[str, Any]:
    """The content of manifest.json."""
    return Manifest(
        created_by={"vgg-export": "1"},
        family="vgg11",
        weights={"source": "file"},
        notice="a notice",
        figures_absent=None,
        target="pi4",
        labels=entry("labels.txt"),
        class_ids=("n01", "n02"),
        expected=entry("expected.npz"),
        samples=(Sample(entry("samples/a.jpg"), 0, False),),
        variants=(variant("baseline"), variant("quantized")),
        files=(entry("splits.json"),),
        max_drop=1.0,
        assumed=("normalisation",),
        network={"family": "vgg11", "classes": 2, "layers": []},
    ).to_json()


def measured() -> dict[str, Any]:
    """What compare.py --json writes."""
    state = result.State(50.0, 1500.0, ("hot",))
    watched = result.Watched(state, state, state)
    share = result.Proportion(0.9, 10, (0.6, 1.0))
    rows = tuple(
        result.Row(
            variant=name,
            title=name,
            precision="fp32",
            input_px=32,
            parameters=10,
            macs=20,
            size_bytes=1000,
            p50_ms=10.0,
            p90_ms=11.0,
            p99_ms=12.0,
            threads=2,
            thread_sweep=(
                result.ThreadTrial(1, 20.0, 21.0, 5, None),
                result.ThreadTrial(2, 10.0, 11.0, 5, None),
            ),
            runs=2,
            samples_ms=(10.0, 11.0),
            rounds=(result.Round(1.0, 2.0, (10.0, 11.0), watched, ("hot",)),),
            speedup=1.0,
            peak_rss_bytes=10**7,
            accuracy=share,
            agreement=share,
            predictions=(result.Prediction((0, 1), (0.9, 0.1), ("cat", "dog")),),
            built=evaluation(),
            losses=(result.StepLoss("prune", 0.9, 0.1, 10, "baseline"),),
        )
        for name in ("baseline", "quantized")
    )
    device = result.MeasuredDevice(
        *("a board", "aarch64", "a core", ("neon",), 4, 4, 10**9, "an OS", "3.11", "1.24"), target="pi4"
    )
    return result.Result(
        schema=result.SCHEMA,
        measured_at="2026-01-01T00:00:00",
        device=device,
        bundle=result.About("artifacts", "vgg11", {"source": "file"}, "pi4", network={"family": "vgg11"}),
        images=(result.Image("a.jpg", "cat"),),
        variants=rows,
        recommended=result.Recommendation("quantized", 1.0, "it is faster", "little"),
        explanations=("a sentence",),
    ).to_json()
