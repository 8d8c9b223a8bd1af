"""The bench that plays a service's day: what it calls lost, and a short real day."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

import service_day
from readings import Reading

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
FLAT = {"compare.py": [Reading(50_000_000, 9, 3)] * 20, "model": [Reading(60_000_000, 8, 2)] * 20}
GOOD = service_day.Found(
    code=0,
    frames={"classified": 9},
    reconnected=2,
    changes=[1, 4],
    arrived=[1, 4, 4],
    failed_deliveries=3,
    discovery=[{"name": "x"}],
    availability=["online"],
    cpu_s={"compare.py": 0.09, "model": 0.018},
    held=FLAT,
    latency_ms={"decode": 1.0},
)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"arrived": [4]}, "1 of 2 stable answers did not arrive: [1]"),
        ({"changes": [], "arrived": []}, "no answer was stable"),
        ({"discovery": []}, "no discovery message came"),
        ({"code": 1}, "compare.py ended with code 1"),
        (
            {"held": FLAT | {"model": [Reading(10_000_000 * (1 + k), 8, 2) for k in range(20)]}},
            "model grew by 160.0 MB",
        ),
    ],
)
def test_what_is_lost_or_grows_fails_the_day(changed: dict[str, object], said: str | None) -> None:
    assert dataclasses.replace(GOOD, **changed).failure(4e6) == said  # type: ignore[arg-type]


def test_the_figures_are_those_per_frame() -> None:
    told = service_day.told(GOOD)
    assert "stable answers: 2 in the log, 2 at the subscriber, 0 lost, 3 failed deliveries" in told
    assert "compare.py: 10.00 ms of CPU per frame; 50.0 MB after the first tenth, then +0.0 MB" in told
    assert "model: 2.00 ms of CPU per frame" in told


@pytest.mark.release
@pytest.mark.skipif(
    not MOSQUITTO and not os.environ.get("VGG_EXPORT_REQUIRE_MOSQUITTO"), reason="needs mosquitto"
)
def test_a_short_day(bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "day.json"
    arguments = ["--bundle", bundle_folder, "--variant", "scaled", "--minutes", "1", "--scene-s", "3"]
    arguments += ["--size", "640x480", "--limit-mb", "30", "--json", found]
    assert service_day.main([str(word) for word in arguments]) == 0, capsys.readouterr().out
    day = json.loads(found.read_text())
    assert day["availability"].count("online") == 3  # at the start, and after each time that it was killed
    assert day["reconnected"] >= 2
    assert set(day["changes"]) <= set(day["arrived"])
