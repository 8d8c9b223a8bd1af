"""Numbers of stages, and what is said where a network has no such stage or nothing to remove."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint
from networks import conv, drawn, linears, of_zoo, pictures

from vgg_export import options
from vgg_export.compress import distil, factorise, feature_maps, prune, solved, stages
from vgg_export.core.errors import DataError, NothingToGainError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data.splits import Splits
from vgg_export.network import chain
from vgg_export.network.activations import NONE
from vgg_export.options import FactoriseOptions, FinetuneOptions, PruneOptions
from vgg_runtime.bundle.input_spec import InputSpec, for_input


def test_a_stage_is_told_by_its_number_or_by_its_old_name() -> None:
    assert [options.stage(text) for text in ("4", "conv4", "12", "")] == [4, 4, 12, None]
    found = [options.trainable(text) for text in ("1", "conv5", "classifier", "fc1", "")]
    assert found == [1, 5, "classifier", "classifier", None]
    for text in ("0", "conv", "conv4_1", "-1", "4.5", "fc2", "all", "classifier"):
        with pytest.raises(OptionsError, match="--prune-from takes the number of a stage, such as 4, found"):
            options.stage(text)
    for text in ("0", "fc2", "conv4_1"):
        with pytest.raises(OptionsError, match=r"--train-from takes the number of a stage, .* or classifier"):
            options.trainable(text)
    with pytest.raises(OptionsError, match="--prune-from counts stages from 1, found 0"):
        PruneOptions(first_stage=0)
    with pytest.raises(OptionsError, match="--train-from counts stages from 1, found 0"):
        FinetuneOptions(train_from=0)


def test_by_default_it_is_the_last_but_one() -> None:
    for family in chain.CONVS_PER_STAGE:
        vgg = chain.full_width(family)
        assert stages.first_of(vgg, None, "--prune-from") == 4  # of five
        assert stages.first_trained(vgg, None) == "conv4_1"
        assert stages.first_trained(vgg, 2) == "conv2_1"
        assert stages.first_trained(vgg, "classifier") == "fc1"
    assert stages.first_of(of_zoo("sigmoid").chain, None, "--prune-from") == 1  # of two
    alone = of_zoo("convolutions alone").chain
    assert stages.first_trained(alone, "classifier") == "conv3_2"
    assert stages.names_from(alone, 3) == ("conv3_1",)  # conv3_2 gives the logits


def test_a_stage_that_the_network_does_not_have_is_refused_with_those_that_it_has(
    splits: Splits, tmp_path: Path
) -> None:
    original = of_zoo("one linear layer")
    with pytest.raises(
        OptionsError, match=r"--prune-from asks for stage 4, but the network has 2 stages .* 1 to 2"
    ):
        prune.prune(original, PruneOptions(first_stage=4))
    with pytest.raises(OptionsError, match="--train-from asks for stage 3, but the network has 2 stages"):
        distil.tune(original, original, splits, FinetuneOptions(train_from=3), tmp_path, Quiet())


def test_what_was_pruned_is_said_with_the_stage() -> None:
    made, _ = prune.prune(of_zoo("no adaptive pool"), PruneOptions(ratio=0.5, multiple=4))
    assert made.provenance.history == ("pruned about 50% of the filters from conv2 on by l2",)
    assert made.chain.widths() == ((16, 16), (12,), (8,))


def test_where_nothing_can_go_it_is_said() -> None:
    single = drawn(_named(conv(5, activation=NONE), chain.AdaptiveAvgPool((1, 1)), chain.Flatten()), 16)
    with pytest.raises(NothingToGainError, match=r"no convolution whose filters can go: .* are the classes"):
        prune.prune(single, PruneOptions(ratio=0.5, multiple=1))
    with pytest.raises(NothingToGainError, match="cannot be factorised to 28% of their arithmetic"):
        factorise.choose_ranks(single.chain, _full_table(single.chain), FactoriseOptions())
    thin = of_zoo("sigmoid everywhere")
    with pytest.raises(NothingToGainError, match=r"removes nothing of \(\(16,\), \(16,\)\) when .* to 16"):
        prune.prune(thin, PruneOptions(ratio=0.5))
    one = drawn(_named(conv(16), chain.MaxPool(), chain.Flatten(), *linears(5)), 16)
    made, kept = prune.prune(one, PruneOptions(ratio=0.5, multiple=4))
    assert made.chain.widths() == ((8,),)
    prune.ensure_same_as_masked(one, made, kept)


def _named(*layers: chain.Layer) -> tuple[chain.Layer, ...]:
    return tuple(
        dataclasses.replace(layer, name=str(k)) if isinstance(layer, chain.Conv | chain.Linear) else layer
        for k, layer in enumerate(layers)
    )


def _full_table(network: chain.Chain) -> solved.Table:
    """Every rank keeps everything."""
    return {
        site.name: dict.fromkeys(forms, (1.0,) * site.layer.outputs * max(kernel))
        for site, kernel, forms in solved.forms(network)
    }


def test_ranks_of_fully_connected_layers_by_hand() -> None:
    defaults = FactoriseOptions()
    assert factorise.fc_ranks(chain.full_width("vgg16"), defaults) == (512, 256)
    assert factorise.fc_ranks(chain.full_width("vgg16", 10), defaults) == (256, 128)
    four = chain.Chain(for_input(224), chain.vgg_layers([[64]] * 5, (4096, 2048, 1024, 10)))
    assert factorise.fc_ranks(four, defaults) == (256, 64, 32)
    assert factorise.fc_ranks(four, dataclasses.replace(defaults, fc_share=0.5)) == (128, 32, 16)
    assert factorise.fc_ranks(four, FactoriseOptions(fc_ranks=(7, 8, 9))) == (7, 8, 9)
    assert factorise.fc_ranks(of_zoo("one linear layer").chain, defaults) == ()
    assert factorise.fc_ranks(of_zoo("sigmoid").chain, FactoriseOptions(multiple=1)) == (1,)
    assert factorise.fc_ranks(of_zoo("convolutions alone").chain, defaults) == ()
    with pytest.raises(
        OptionsError, match="--fc-ranks gives 16,8, but the network has 1 fully connected layer "
    ):
        factorise.fc_ranks(of_zoo("sigmoid").chain, FactoriseOptions(fc_ranks=(16, 8)))
    assert options.ranks("64,32,16") == (64, 32, 16)
    with pytest.raises(OptionsError, match="whole numbers such as 256,128, found '64,x'"):
        options.ranks("64,x")
    narrow = of_zoo("four linear layers").chain
    with pytest.raises(OptionsError, match=r"rank 20 saves nothing in fc2, which is 32 x 24; .* at most 13"):
        factorise.choose_ranks(narrow, _full_table(narrow), FactoriseOptions(fc_ranks=(8, 20, 8), multiple=4))


def test_layers_that_save_nothing_stay_whole() -> None:
    """1x1 convolutions have one form, and those of a head of one layer none."""
    network = of_zoo("large kernels").chain
    found = factorise.choose_ranks(
        network, _full_table(network), FactoriseOptions(conv_share=0.5, multiple=4)
    )
    kinds = {site.name: site.layer.factor.kind for site in found.sites if site.layer.factor}
    assert kinds.get("conv2_2", "channel") == "channel"
    assert kinds["fc1"] == "linear"
    assert "fc2" not in kinds
    assert sum(p.macs() for p in found.parts() if p.kernel) <= 0.5 * sum(
        p.macs() for p in network.parts() if p.kernel
    )
    alone = of_zoo("one linear layer").chain
    found = factorise.choose_ranks(alone, _full_table(alone), FactoriseOptions(conv_share=0.5, multiple=4))
    assert not any(site.layer.factor for site in found.linears)


def test_the_padding_of_a_trained_layer_is_not_left_behind() -> None:
    original = of_zoo("large kernels")
    for made in (original.chain, original.chain.with_factors({"conv2_1": chain.Factor("spatial", 4)})):
        network = dataclasses.replace(
            original, chain=made, tensors={n: torch.randn(s) for n, s in made.tensor_shapes().items()}
        ).model()
        first = made.site(stages.first_trained(made, 2)).parts()[0].name
        frozen, trained = distil._divide(network, first)
        x = pictures(original, 2)
        with torch.inference_mode():
            assert torch.equal(trained(frozen(x)), network(x))
            assert frozen(x).shape[1:] == made.site("conv2_1").inputs
        assert not any(p.requires_grad for p in frozen.parameters())


def test_layers_of_another_kind_are_not_shared_with_the_teacher() -> None:
    """A pool has no weights to tell it by."""
    body = (conv(8), chain.MaxPool())
    teacher = drawn(_named(*body, chain.AdaptiveAvgPool((3, 3)), chain.Flatten(), *linears(5)), 16)
    frozen, _ = distil._divide(teacher.model(), "fc1")
    assert distil._begins_with(teacher.model(), frozen)
    other = torch.nn.Sequential(*(m for m in frozen if not isinstance(m, torch.nn.AdaptiveAvgPool2d)))
    assert len(other) < len(frozen)
    assert not distil._begins_with(teacher.model(), other)


def test_a_teacher_with_other_outputs_is_refused(splits: Splits, tmp_path: Path) -> None:
    several = drawn(_named(conv(8), chain.MaxPool(), chain.Flatten(), *linears(6)), 32, output="softmax")
    with pytest.raises(DataError, match="the student's outputs are 'softmax', the teacher's 'multi-label'"):
        distil.tune(several, of_zoo("multi-label"), splits, FinetuneOptions(), tmp_path, Quiet())
    two = drawn(_named(conv(8), chain.MaxPool(), chain.Flatten(), *linears(2)), 32)
    with pytest.raises(DataError, match="the student's outputs are 'softmax', the teacher's 'sigmoid'"):
        distil.tune(two, of_zoo("sigmoid"), splits, FinetuneOptions(), tmp_path, Quiet())


def test_noise_fits_the_input_of_the_network(tmp_path: Path) -> None:
    original = of_zoo("one channel")
    shown = prune._pictures(original.chain.input, None, PruneOptions())
    assert shown.fit.shape == (48, 1, 48, 48)
    assert shown.held.shape == (12, 1, 48, 48)
    assert isinstance(shown, feature_maps.Pictures)
    assert InputSpec.from_json(original.chain.input.to_json()).channels == 1


def test_the_old_vgg_is_pruned_as_before() -> None:
    made, _ = prune.prune(small_checkpoint(), PruneOptions(ratio=0.5))
    assert made.chain.widths() == ((16,), (16,), (32, 32), (16, 16), (16, 16))
    assert made.provenance.history == ("pruned about 50% of the filters from conv4 on by l2",)
