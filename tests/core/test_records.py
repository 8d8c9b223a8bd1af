import dataclasses
import json
from typing import Any

import pytest

from vgg_export.core.records import DamagedRecordError, Record


@dataclasses.dataclass(frozen=True)
class Part(Record):
    """One of the parts below."""

    share: float
    note: str | None


@dataclasses.dataclass(frozen=True)
class Whole(Record):
    """Every kind of field that there is."""

    count: int
    parts: tuple[Part, ...]
    ends: tuple[float, float]
    named: dict[str, Part]
    anything: dict[str, Any]
    flag: bool = False
    absent: str | None = None


WHOLE = Whole(3, (Part(0.5, None), Part(1, "x")), (0.0, 1.0), {"a": Part(0.25, "y")}, {"k": [1, None]})


def test_a_record_comes_back_from_json() -> None:
    data = json.loads(json.dumps(WHOLE.to_json()))
    assert data["parts"][0] == {"share": 0.5, "note": None}  # it must be said
    assert "absent" not in data  # it need not be
    assert Whole.from_json(data | {"unknown": 1}) == WHOLE
    assert Whole.from_json(data | {"absent": "not at all"}).absent == "not at all"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": "3"}, "Whole.count is '3'; expected int"),
        ({"count": True}, "Whole.count is True; expected int"),
        ({"flag": 1}, "Whole.flag is 1; expected bool"),
        ({"parts": [{"share": 1.0}]}, "Part lacks 'note'"),
        ({"parts": {"share": 1.0}}, "Whole.parts is {'share': 1.0}; expected"),
        ({"ends": [1.0]}, r"Whole.ends is \[1.0\]; expected"),
        ({"named": {"a": {"share": "1", "note": None}}}, "Part.share is '1'; expected float"),
        ({"named": {"a": 7}}, r"Whole.named\['a'\] is damaged .*Part: 7 is not a dictionary"),
    ],
)
def test_what_is_damaged_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(DamagedRecordError, match=told):
        Whole.from_json(WHOLE.to_json() | change)
    with pytest.raises(DamagedRecordError, match="Whole lacks 'count'"):
        Whole.from_json({key: value for key, value in WHOLE.to_json().items() if key != "count"})
