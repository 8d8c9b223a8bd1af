"""Recipes and their steps: each is an object, and a new one needs nothing elsewhere."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import first, small_checkpoint

from vgg_export import recipes
from vgg_export.core import cache
from vgg_export.core.losses import Loss, Losses
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import DataOptions, QuantizeOptions, RecipeOptions
from vgg_export.recipes import CHECKPOINT, DISTIL, EXPORT, MODEL, PRUNE, QUANTIZE, RECIPES, Recipe, Step
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model

STAGE = cache.Stage("sharpen", recipes.__name__, Losses)


def sharpen(before: cache.Artifact, context: recipes.Context) -> cache.Artifact:
    """Twice the logits."""

    def make(path: Path) -> Losses:
        given = checkpoints.load(before.path)
        doubled = {name: given.tensors[name] * 2 for name in ("fc3.weight", "fc3.bias")}
        checkpoints.save(dataclasses.replace(given, tensors=given.tensors | doubled), path)
        return Losses({"sharpened": Loss(1.0, 0.0, 8, "the checkpoint")})

    return cache.produce(STAGE, {}, {"checkpoint": before}, context.output, make)


SHARPEN = Step("sharpen", CHECKPOINT, CHECKPOINT, sharpen)


@pytest.fixture
def context(splits: Splits, tmp_path: Path) -> recipes.Context:
    checkpoints.save(small_checkpoint(), tmp_path / "mine.safetensors")
    options = RecipeOptions(
        data=DataOptions(calibration_images=8), targets=("pi5",), quantize=QuantizeOptions("pi5")
    )
    original = cache.of(tmp_path / "mine.safetensors")
    return recipes.Context(original, splits, options, Quiet(), tmp_path / "work", tmp_path / "work")


@pytest.mark.parametrize("integers", first(1, [False, True]))
def test_a_new_step_and_a_new_variant_are_an_object_each(integers: bool, context: recipes.Context) -> None:
    steps = recipes.Steps(context)
    recipe = Recipe("sharp", "Sharp", "twice as sure", (SHARPEN, EXPORT, *([QUANTIZE] if integers else [])))
    entry = steps.entry(recipe)
    last = "+quantize" if integers else ""
    assert entry.model.path == context.folder / f"checkpoint+sharpen+export{last}.onnx"
    assert entry.steps == recipes.names(recipe.steps)
    assert [loss.step for loss in entry.losses] == ["sharpened", *(["quantized"] if integers else [])]
    assert entry.targets == (("pi5",) if integers else ())
    assert entry.info.precision == ("int8" if integers else "fp32")
    if not integers:
        x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
        plain = Model(steps.make((EXPORT,)).path, SessionSettings(), 1)(x)
        np.testing.assert_allclose(
            Model(entry.model.path, SessionSettings(), 1)(x), 2 * plain, rtol=1e-4, atol=1e-5
        )


def test_a_beginning_that_recipes_share_is_made_once(context: recipes.Context) -> None:
    made: list[str] = []

    def counted(before: cache.Artifact, here: recipes.Context) -> cache.Artifact:
        made.append(here.output.name)
        return before

    first, second = (Step(name, CHECKPOINT, CHECKPOINT, counted) for name in ("first", "second"))
    steps = recipes.Steps(context)
    assert steps.make((first, second)) is steps.make((first,)) is context.checkpoint
    steps.make((second,))
    names = ["first", "first+second", "second"]
    assert made == [f"checkpoint+{name}.safetensors" for name in names]
    assert steps.losses((first, second)) == ()  # they had nothing to do


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ((EXPORT, PRUNE), "wrong: prune takes a .safetensors file, found .onnx"),
        ((QUANTIZE,), "wrong: quantize takes a .onnx file, found .safetensors"),
        ((PRUNE, DISTIL), "wrong: the last step must write a .onnx file, found .safetensors"),
        ((), "wrong: the last step must write a .onnx file, found .safetensors"),
    ],
)
def test_a_wrong_order_is_refused(steps: tuple[Step, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe("wrong", "", "", steps)


def test_what_is_derived_of_the_steps() -> None:
    assert {r.id for r in RECIPES if r.searched} == {
        "compact",
        "compact-scaled",
        "compact-fp32",
        "compact-scaled-fp32",
    }
    assert {r.id for r in RECIPES if r.integers} == {
        "quantized",
        "pruned-quantized",
        "pruned-quantized-scaled",
        "compact",
        "compact-scaled",
    }
    steps = {step for recipe in RECIPES for step in recipe.steps}
    assert len({step.name for step in steps}) == len(steps)
    assert {step.suffix for step in steps} == {CHECKPOINT, MODEL}
