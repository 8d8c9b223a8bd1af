"""The process of a variant: what it answers about many pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_bundles import colours, draw, paint

from vgg_runtime.bundle import outputs
from vgg_runtime.bundle.manifest import SessionSettings
from vgg_runtime.bundle.session import Model
from vgg_runtime.measure import worker


@pytest.mark.parametrize("timed", [1, 5, 29, 30, 100])
def test_pictures_that_are_decoded_ahead_are_answered_in_order(
    timed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "TIMED_PICTURES", timed)
    drawn = draw(tmp_path / "artifacts", outputs.SOFTMAX)
    wanted = colours(30)
    paths = [paint(tmp_path / f"{k}.png", colour) for k, colour in enumerate(wanted)]
    model = Model(drawn.folder / "models/far.onnx", SessionSettings(), 1)
    worker._answer(model, iter(paths), 1000, drawn.spec, drawn.output)  # 1,000 were answered before
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    said = [event for event in events if event["event"] == "predicted"]
    assert [event["index"] for event in said] == list(range(1000, 1030))
    assert [event["classes"][0] for event in said] == list(np.argmax(drawn.logits("far", *wanted), axis=1))
    (answered,) = (event for event in events if event["event"] == "answered")
    assert len(answered["prepare_ms"]) == len(answered["end_to_end_ms"]) == min(timed, 30)
