"""The settings of a session."""

import onnxruntime as ort
import pytest

from vgg_runtime.bundle import session
from vgg_runtime.bundle.manifest import SessionSettings


def test_between_frames_threads_wait_a_millisecond_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SessionSettings(config={"session.disable_prepacking": "1"})
    for version, (key, value) in (("1.30.0", session.BOUNDED), ("1.29.3", session.NONE)):
        monkeypatch.setattr(ort, "__version__", version)
        options = session.session_options(settings, 2, spinning=False)
        assert options.get_session_config_entry(key) == value
        assert options.get_session_config_entry("session.disable_prepacking") == "1"
        with pytest.raises(RuntimeError):
            session.session_options(settings, 2).get_session_config_entry(key)
