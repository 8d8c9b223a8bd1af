import dataclasses
import json
import math
from typing import Any

import pytest

from vgg_export.core.records import SidecarRecord
from vgg_runtime.records import AnyFloat, FieldError, Record


@dataclasses.dataclass(frozen=True)
class Part(Record):
    """One of the parts below."""

    share: float
    note: str | None = None


@dataclasses.dataclass(frozen=True)
class Whole(SidecarRecord):
    """Every kind of field that a sidecar has."""

    count: int
    parts: tuple[Part, ...]
    named: dict[str, dict[str, Part]]
    anything: dict[str, Any]
    found: str | None
    curve: tuple[AnyFloat, ...] = ()
    absent: Part | None = None


WHOLE = Whole(3, (Part(0.5), Part(1, "x")), {"a": {"b": Part(0.25, "y")}}, {"k": [1, None]}, None)


def test_a_sidecar_comes_back_without_what_is_absent() -> None:
    data = json.loads(json.dumps(WHOLE.to_json()))
    assert list(data) == ["count", "parts", "named", "anything", "found", "curve"]
    assert data["parts"][0] == {"share": 0.5, "note": None}  # of a record that is no sidecar's own
    assert data["found"] is None  # it must be said
    assert Whole.from_json(data | {"unknown": 1}) == WHOLE
    there = dataclasses.replace(WHOLE, absent=Part(0.5))
    assert Whole.from_json(json.loads(json.dumps(there.to_json()))) == there


def test_a_number_may_be_none_where_that_is_said() -> None:
    written = json.dumps(dataclasses.replace(WHOLE, curve=(0.5, math.inf, math.nan)).to_json())
    half, infinite, none = Whole.from_json(json.loads(written)).curve
    assert (half, infinite) == (0.5, math.inf)
    assert math.isnan(none)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"named": {"a": {"b": 7}}}, "measured.named.a.b: expected an object, found 7"),
        (
            {"named": {"a": {"b": {"share": math.nan}}}},
            "measured.named.a.b.share: expected a number, found NaN",
        ),
        ({"curve": [1.0, "x"]}, "measured.curve[1]: expected a number, found 'x'"),
        ({"curve": [True]}, "measured.curve[0]: expected a number, found true"),
        ({"absent": 1}, "measured.absent: expected an object or null, found 1"),
    ],
)
def test_what_is_damaged_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(FieldError) as error:
        Whole.from_json(WHOLE.to_json() | change, "measured")
    assert str(error.value) == told
