"""The closed forms against their definitions, and repair where the right answer is known."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_checkpoint
from networks import at_64_px, awake, undecided

from vgg_export.compress import factorise, feature_maps, least_squares, prune, reconstruct, separable
from vgg_export.core import cache
from vgg_export.core.losses import Losses
from vgg_export.core.progress import Progress, Quiet
from vgg_export.data import splits
from vgg_export.network import chain
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import FactoriseOptions, PruneOptions
from vgg_runtime.bundle.input_spec import IMAGENET_MEAN, IMAGENET_STD, InputSpec, for_input


def pictures(count: int, px: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


def everything(checkpoint: checkpoints.Checkpoint) -> dict[str, torch.Tensor]:
    return {site.name: torch.arange(site.layer.outputs) for site in checkpoint.chain.convs}


def test_patches_are_what_a_convolution_sees() -> None:
    maps, places = torch.randn(2, 3, 5, 7), torch.tensor([[0, 6, 17], [34, 28, 9]])
    unfolded = torch.nn.functional.unfold(maps, 3, padding=1)
    expected = torch.stack([unfolded[k, :, places[k]].T for k in range(2)]).flatten(0, 1)
    assert torch.equal(feature_maps.patches(maps, places, chain.Conv("c", 1)), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 1), (1, 1), (0, 0, 0, 0)),
        ((5, 5), (2, 2), (2, 2, 2, 2)),
        ((7, 3), (2, 3), (0, 1, 3, 2)),
        ((2, 4), (1, 2), (1, 0, 0, 3)),
    ],
)
def test_patches_of_any_convolution_are_what_it_sees(
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> None:
    conv = chain.Conv("c", 4, kernel, stride, padding)
    maps, weight = torch.randn(2, 3, 9, 11), torch.randn(4, 3, *kernel)
    top, left, bottom, right = padding
    padded = torch.nn.functional.pad(maps, (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, weight, stride=stride)
    assert expected.shape[1:] == conv.shape_behind((3, 9, 11))
    area = expected[0, 0].numel()
    places = torch.stack([torch.randperm(area)[:5] for _ in range(2)])
    found = (feature_maps.patches(maps, places, conv) @ weight.flatten(1).T).view(2, 5, 4)
    wanted = torch.stack([expected[k].flatten(1)[:, places[k]].T for k in range(2)])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 9])
def test_moments_of_chunks_are_those_of_all_samples(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "BLOCK", block)
    x, y, w = torch.randn(50, 4) + 3, torch.randn(50, 2), torch.randn(2, 4).double()
    sums = least_squares.Sums(4, 2)
    sums.add(x[:20], y[:20])
    sums.add(x[20:], y[20:])
    found = sums.moments()
    centred_x, centred_y = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    assert torch.allclose(found.xx, centred_x.T @ centred_x / 50, atol=1e-5)
    assert torch.allclose(found.yx, centred_y.T @ centred_x / 50, atol=1e-5)
    assert found.error(w) == pytest.approx(float((centred_y - centred_x @ w.T).square().sum() / 50), rel=1e-4)


def moments(x: torch.Tensor, y: torch.Tensor) -> least_squares.Moments:
    sums = least_squares.Sums(x.shape[1], y.shape[1])
    sums.add(x, y)
    return sums.moments()


def test_ridge_is_anchored_and_its_strength_is_what_does_best_on_other_samples() -> None:
    torch.manual_seed(0)
    true, start = torch.randn(3, 6), torch.randn(3, 6).double()
    x, other = torch.randn(200, 6), torch.randn(80, 6)
    weight, strength = least_squares.ridge(start, moments(x, x @ true.T), moments(other, other @ true.T))
    assert strength == min(least_squares.STRENGTHS)  # no noise: the least damping is right
    assert torch.allclose(weight, true.double(), atol=5e-3)
    noisy = x[:8] @ true.T + 20 * torch.randn(8, 3)
    weight, strength = least_squares.ridge(
        true.double(), moments(x[:8], noisy), moments(other, other @ true.T)
    )
    assert weight == pytest.approx(true.double())
    assert strength is None


@pytest.mark.parametrize("samples", [24, 40, 100, 1000])
@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
def test_the_strength_is_the_best_of_all_from_wherever_the_looking_starts(samples: int, noise: float) -> None:
    """Strengths are tried from the usual one on, as long as that helps. It finds what trying all finds."""
    generator = torch.Generator().manual_seed(samples)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    true, x, other = drawn(3, 20), drawn(samples, 20), drawn(400, 20)
    start = (true + 0.5 * drawn(3, 20)).double()
    fitting = moments(x, x @ true.T + noise * drawn(samples, 3))
    held = moments(other, other @ true.T + noise * drawn(400, 3))
    errors: dict[float | None, float] = {None: held.error(start)}
    for strength in least_squares.STRENGTHS:
        damped = fitting.xx + strength * float(fitting.xx.diagonal().mean()) * torch.eye(20).double()
        change = torch.linalg.solve(damped, (fitting.yx - start @ fitting.xx).T).T
        errors[strength] = held.error(start + change)
    weight, found = least_squares.ridge(start, fitting, held)
    assert found == min(errors, key=errors.__getitem__)
    assert held.error(weight) == pytest.approx(errors[found])


def test_the_dual_form_is_the_primal_one() -> None:
    torch.manual_seed(0)
    start, x, y = torch.randn(3, 40), torch.randn(30, 40), torch.randn(30, 3)
    fit, said = least_squares.Centred.of(x, 20), least_squares.Centred.of(y, 20)
    weight, strength = least_squares.ridge_by_picture(start, fit, said)
    if strength is None:
        strength, weight = least_squares.STRENGTHS_BY_PICTURE[0], start
        pytest.fail("the data of this test should make a fit worth while")
    # In float64: with the least damping the inverse of the primal form is off by 4e-4 in float32; the dual
    # form is by 1e-6.
    first, x64, y64 = start.double(), fit.fit.double(), said.fit.double()
    damping = strength * float((x64 @ x64.T).diagonal().mean())
    inverse = torch.linalg.inv(x64.T @ x64 + damping * torch.eye(40, dtype=torch.float64))
    assert torch.allclose(weight.double(), first + (y64 - x64 @ first.T).T @ x64 @ inverse, atol=2e-5)


def test_the_dual_form_is_not_taken_where_it_does_worse_on_other_samples() -> None:
    torch.manual_seed(0)
    true, x, noise = torch.randn(3, 40), torch.randn(30, 40), 20 * torch.randn(20, 3)
    y = x @ true.T
    y[:20] += noise - noise.mean(0)  # the others lie where the old weights say
    found, strength = least_squares.ridge_by_picture(
        true, least_squares.Centred.of(x, 20), least_squares.Centred.of(y, 20)
    )
    assert strength is None
    assert torch.equal(found, true)


def test_maps_that_are_computed_again_are_those_that_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, x = at_64_px(small_checkpoint()), pictures(11)
    with torch.inference_mode():
        expected = checkpoint.model()(x)
        for limit in (0, 20_000, 10**9):
            monkeypatch.setattr(feature_maps, "KEPT_BYTES", limit)
            maps = feature_maps.Maps(x, tmp_path)
            for site in checkpoint.chain.sites:
                maps.advance(*feature_maps.forward(checkpoint.chain, site.name, checkpoint.tensors))
            assert torch.allclose(maps.read(0, 11), expected, atol=1e-4)
    assert list(tmp_path.iterdir()) == []  # the files have no names


def test_a_filter_that_another_one_repeats_can_go_without_loss(tmp_path: Path) -> None:
    shown = feature_maps.Pictures(pictures(40), pictures(10, seed=1))
    original = awake(at_64_px(small_checkpoint()), "conv4_1", shown.fit)
    for part in ("weight", "bias"):
        original.tensors[f"conv4_1.{part}"][5] = original.tensors[f"conv4_1.{part}"][9]
    original = undecided(original, shown.fit)
    kept = everything(original)
    kept["conv4_1"] = torch.tensor([k for k in range(32) if k != 5])
    left = prune.remove_filters(original, kept)
    smaller = original.chain.with_widths({"conv4_1": 31})
    tensors, fits = reconstruct.repair(
        reconstruct.Problem(original, left, kept, smaller), shown, reconstruct.Folders(tmp_path), Quiet()
    )
    before = reconstruct.loss(
        original, checkpoints.Checkpoint(smaller, left, original.labels, original.provenance), shown.held
    )
    after = reconstruct.loss(
        original, checkpoints.Checkpoint(smaller, tensors, original.labels, original.provenance), shown.held
    )
    assert before.kl > 100 * after.kl
    assert after.n == 10
    assert after.agreement >= 0.9  # one may lie on the edge between two classes
    assert fits[0].layer == "conv4_2"  # conv4_1 itself sees the same inputs and is left alone
    assert fits[0].error_after < 0.01 * fits[0].error_before
    assert torch.equal(tensors["conv3_2.weight"], original.tensors["conv3_2.weight"])


@pytest.mark.parametrize(
    ("layer", "kind"), [("conv3_1", "channel"), ("conv3_1", "spatial"), ("fc1", "linear")]
)
def test_a_layer_of_low_rank_is_factorised_without_loss(layer: str, kind: str, tmp_path: Path) -> None:
    original = at_64_px(small_checkpoint())
    weight = original.tensors[f"{layer}.weight"]
    if kind == "spatial":
        low = separable.joined(torch.randn(6, weight.shape[1], 3), 0.1 * torch.randn(len(weight), 6, 3))
    else:
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        low = ((u[:, :6] * s[:6]) @ v[:6]).view(weight.shape)
    original.tensors[f"{layer}.weight"] = low.contiguous()
    smaller = original.chain.with_factors({layer: chain.Factor(kind, 6)})
    shown = feature_maps.Pictures(pictures(40), pictures(10, seed=1))
    tensors, (fit, *_) = reconstruct.repair(
        reconstruct.Problem(original, original.tensors, {}, smaller),
        shown,
        reconstruct.Folders(tmp_path),
        Quiet(),
    )
    made = checkpoints.Checkpoint(smaller, tensors, original.labels, original.provenance)
    assert (fit.layer, fit.rank) == (layer, 6)
    assert fit.error_after < 1e-4
    with torch.inference_mode():
        assert torch.allclose(made.model()(shown.held), original.model()(shown.held), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_the_important_directions_are_the_gradients_of_the_logits(layer: str) -> None:
    original = small_checkpoint()
    width = original.chain.site(layer).layer.outputs
    said = torch.randn(3, width, generator=torch.Generator().manual_seed(2)) * 3
    rows = least_squares.important(original, layer, said).view(3, least_squares.COMBINATIONS, width)
    mixed = torch.randn(
        3, least_squares.COMBINATIONS, original.chain.units, generator=torch.Generator().manual_seed(0)
    )
    mixed -= mixed.mean(2, keepdim=True)
    outputs = said.clone().requires_grad_(True)
    logits = least_squares.Behind(original, layer, said).logits(outputs)
    for k in (0, least_squares.COMBINATIONS - 1):
        (gradient,) = torch.autograd.grad((logits * mixed[:, k]).sum(), outputs, retain_graph=True)
        assert torch.allclose(rows[:, k], gradient, rtol=1e-4, atol=1e-5)


def test_a_thin_layer_keeps_what_the_logits_need_rather_than_what_varies_most() -> None:
    """The largest variances of the layer are in directions that the later layers do not read. With as many
    directions as these read, one way keeps all that are needed and the other none. Six drawn layers lose 0.06
    to 0.19 of what the other way loses."""
    original, generator = small_checkpoint(), torch.Generator().manual_seed(3)
    n = original.chain.site("fc1").layer.outputs
    original.tensors["fc2.weight"][:, : n // 2] = 0  # nobody reads the first half
    x = torch.randn(120, 64, generator=generator)
    weight = (
        torch.randn(n, 64, generator=generator)
        * torch.cat([torch.full((n // 2,), 8.0), torch.ones(n - n // 2)])[:, None]
    )
    said = x @ weight.T
    inputs, judge = least_squares.Centred.of(x, 80), least_squares.Behind(original, "fc1", said[80:])

    def cost(first: torch.Tensor, second: torch.Tensor) -> float:
        return judge.divergence(said[:80].mean(0) + least_squares.linear_in_parts(inputs.held, first, second))

    aware = least_squares.in_two_by_picture(
        weight, inputs, least_squares.important(original, "fc1", said[:80]), n // 2, cost
    )
    basis = least_squares.main_directions(weight @ weight.T, n // 2)
    assert cost(*aware) < 0.4 * cost(basis.T @ weight, basis)
    whole = least_squares.in_two_by_picture(
        weight, inputs, least_squares.important(original, "fc1", said[:80]), n, cost
    )
    assert torch.allclose(whole[1] @ whole[0], weight, atol=1e-2)  # at full rank nothing changes


@pytest.mark.parametrize("rank", [1, 8, 30, 200])
def test_the_main_directions_of_a_product_are_those_of_the_matrix(rank: int) -> None:
    """The eigenvalues fall as those of features do, by a third from one to the tenth that follows it."""
    generator = torch.Generator().manual_seed(4)
    basis = torch.linalg.qr(torch.randn(200, 200, generator=generator)).Q
    covariance = basis * 0.96 ** torch.arange(200) @ basis.T
    found = least_squares.main_directions_of(lambda v: covariance @ v, 200, rank)
    assert found.T @ found == pytest.approx(torch.eye(rank), abs=1e-4)
    kept = float((found.T @ covariance @ found).trace())
    wanted = least_squares.main_directions(covariance, rank)
    assert kept == pytest.approx(float((wanted.T @ covariance @ wanted).trace()), rel=1e-3)


class Interrupted(Quiet):
    """Stops the work after some layers were fitted."""

    def __init__(self, layers: int) -> None:
        self._left, self._label = layers, ""

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator[Quiet]:
        self._label = label
        yield self

    def advance(self, steps: int = 1) -> None:
        self._left -= self._label == "fitting the layers"
        if not self._left:
            raise KeyboardInterrupt


@pytest.mark.release
@pytest.mark.parametrize("which", ["prune", "factorise"])
def test_interrupted_work_goes_on_behind_the_last_finished_layer(
    which: str, splits: splits.Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(small_checkpoint(), tmp_path / "checkpoint.safetensors")
    source = cache.of(tmp_path / "checkpoint.safetensors")

    def run(name: str, progress: Progress, images: int = 16) -> cache.Artifact:
        output = tmp_path / name
        if which == "prune":
            return prune.run(
                source, splits, output, PruneOptions(ratio=0.5, images=images, held_images=8), progress
            )
        return factorise.run(
            source, splits, output, FactoriseOptions(images=images, held_images=8, multiple=4), progress
        )

    whole = run("whole.safetensors", Quiet())
    layers = [fit["layer"] for fit in whole.measured["layers"]]
    steps = [site.name for site in checkpoints.load(source.path).chain.convs].index(layers[1]) + 1
    with pytest.raises(KeyboardInterrupt):
        run("again.safetensors", Interrupted(steps))
    (parts,) = tmp_path.glob(".again.safetensors.*.parts")
    assert sorted(p.stem for p in parts.glob("*.safetensors")) == sorted(layers[:2])
    fitted: list[str] = []
    for kind in ("_conv", "_linear"):
        fit = getattr(reconstruct._Walk, kind)

        def noted(walk: Any, name: str, *rest: Any, fit: Any = fit) -> Any:
            fitted.append(name)
            return fit(walk, name, *rest)

        monkeypatch.setattr(reconstruct._Walk, kind, noted)
    again = run("again.safetensors", Quiet())
    assert fitted == layers[2:]
    wanted, found = (checkpoints.load(made.path).tensors for made in (whole, again))
    assert all(torch.allclose(found[name], tensor, rtol=1e-2, atol=1e-3) for name, tensor in wanted.items())
    errors = [[fit["error_after"] for fit in made.measured["layers"]] for made in (again, whole)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-2, abs=1e-6)
    after, before = (made.read(Losses).losses["repaired"].kl for made in (again, whole))
    assert after == pytest.approx(before, rel=1e-2)
    assert not list(tmp_path.glob(".*.parts"))
    with pytest.raises(KeyboardInterrupt):
        run("again.safetensors", Interrupted(steps), images=12)
    fitted.clear()
    run("again.safetensors", Quiet(), images=14)  # other pictures: nothing of that can be used
    assert fitted == layers
    assert not list(tmp_path.glob(".*.parts"))


def test_repair_never_leaves_a_layer_worse_than_it_was_on_held_out_pictures(tmp_path: Path) -> None:
    original = at_64_px(small_checkpoint())
    pruned, kept = prune.prune(original, PruneOptions(ratio=0.5))
    shown = feature_maps.Pictures(pictures(2), pictures(10, seed=1))  # far too few to fit on
    _, fits = reconstruct.repair(
        reconstruct.Problem(original, pruned.tensors, kept, pruned.chain),
        shown,
        reconstruct.Folders(tmp_path),
        Quiet(),
    )
    assert len(fits) >= 6
    assert all(fit.error_after <= fit.error_before + 1e-9 for fit in fits if fit.layer.startswith("conv"))
    # A fully connected layer is chosen by its own outputs and measured by the logits: one in six networks was
    # 1 % worse.
    assert all(fit.error_after <= 1.1 * fit.error_before for fit in fits)


def test_the_loss_is_agreement_and_the_kl_in_nats() -> None:
    original, other = at_64_px(small_checkpoint()), at_64_px(small_checkpoint(seed=1))
    x = pictures(9)
    same = reconstruct.loss(original, original, x)
    assert (same.agreement, same.n) == (1.0, 9)
    assert same.kl == pytest.approx(0, abs=1e-6)
    with torch.inference_mode():
        p, q = original.model()(x).softmax(1), other.model()(x).softmax(1)
    found = reconstruct.loss(original, other, x)
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3)
    assert found.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).float().mean()))


def test_noise_has_the_spectrum_of_photographs() -> None:
    made = feature_maps.noise(10, for_input(64), 0)
    assert (len(made.fit), len(made.held)) == (8, 2)
    power = torch.fft.rfft2(made.fit.mean(1)).abs().square().mean(0)
    # falls about as the square of the frequency
    assert float(power[0, 1:3].mean() / power[0, 12:16].mean()) > 30
    assert torch.equal(feature_maps.noise(10, for_input(64), 0).fit, made.fit)
    assert float(made.fit.mean()) == pytest.approx(0, abs=0.3)
    assert 0.9 < float(made.fit.std()) < 1.3
    assert not torch.equal(feature_maps.noise(10, for_input(64), 1).fit, made.fit)


def test_noise_has_the_values_that_the_network_was_trained_with() -> None:
    usual = feature_maps.noise(10, for_input(32), 0).fit
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    bright = usual * std + mean  # 0 to 1
    unit = feature_maps.noise(10, InputSpec(32, 32, (0.0,) * 3, (1.0,) * 3), 0).fit
    torch.testing.assert_close(unit, bright)
    bgr = InputSpec(32, 32, tuple(m / 255 for m in (103.939, 116.779, 123.68)), (1 / 255,) * 3, bgr=True)
    # the first channel is blue; noise is drawn for each channel of the network
    blue = feature_maps.noise(10, bgr, 0).fit[:, 0]
    torch.testing.assert_close(blue, (usual[:, 0] * 0.225 + 0.406) * 255 - 103.939, rtol=1e-4, atol=1e-2)
    grey = feature_maps.noise(10, InputSpec(32, 32, (0.5,), (0.5,), 1), 0).fit
    assert grey.shape == (8, 1, 32, 32)
    assert float(grey.mean()) == pytest.approx((0.449 - 0.5) / 0.5, abs=0.2)
    assert 0.35 < float(grey.std()) < 0.65
