"""Chooses the variant to use where nobody has measured this machine: what ``compare.py`` would recommend,
with the arithmetic in place of the measured time."""

import dataclasses

from vgg_runtime.board import targets
from vgg_runtime.board.targets import Target
from vgg_runtime.bundle.manifest import Manifest, Variant
from vgg_runtime.errors import BundleError
from vgg_runtime.measure.recommend import recommend
from vgg_runtime.measure.running import empty_row

# Time per product of int8 relative to float: about a third where the core has a dot product (measured: 3.6
# times as fast, full-size VGG19); elsewhere about as much, and the smaller file decides.
INT8_WITH_DOT_PRODUCT, INT8_WITHOUT = 0.33, 0.98


def recommended(bundle: Manifest, core: Target | None = None) -> Variant:
    """The variant that the bundle recommends for a core (None: this machine's): the search's choice, else the
    one with the least expected time of those whose loss on test images is within the allowance.

    Raises:
        BundleError: it recommends none; the message says why, and which variants there are.
    """
    if len(bundle.variants) == 1:
        return bundle.variants[0]
    here = core or targets.here()
    rows = [
        dataclasses.replace(empty_row(variant), p50_ms=_expected(variant, here))
        for variant in bundle.variants
    ]
    found = recommend(
        rows,
        bundle.variants[0].id,
        bundle.max_drop,
        bundle.problem or bundle.figures_absent,
        bundle.output,
        bundle.searched,
        sure=bundle.sure,
    )
    if found.variant is None:
        names = ", ".join(variant.id for variant in bundle.variants)
        raise BundleError(f"this bundle recommends no variant ({found.reason}); name one of {names}")
    return bundle.variant(found.variant)


def _expected(variant: Variant, here: Target) -> float:
    """The expected time of a variant, in billions of float multiplications."""
    per_product = 1.0
    if variant.precision == "int8":
        per_product = INT8_WITH_DOT_PRODUCT if here.dot_product else INT8_WITHOUT
    return variant.macs / 1e9 * per_product
