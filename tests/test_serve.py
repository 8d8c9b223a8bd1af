"""The page's server as it runs on the device: a real process, real requests, real pictures."""

import concurrent.futures
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, ask, command_environment, served, serving, status_field
from PIL import Image

from vgg_runtime import page, recommend, serve

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def port(bundle_folder: Path) -> Iterator[int]:
    with served(bundle_folder) as (number, _):
        yield number


@pytest.fixture(scope="module")
def photo() -> bytes:
    return (ROOT / "calibration/images/cat.jpg").read_bytes()


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def events(content: bytes) -> list[dict]:
    return [json.loads(line) for line in content.splitlines()]


def test_a_picture_is_answered_variant_by_variant(port: int, photo: bytes, bundle_folder: Path, tmp_path: Path) -> None:
    status, content, headers = ask(port, "POST", "/api/compare", photo)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    told = events(content)
    assert [e["event"] for e in told] == ["start", *["running", "row", "row"] * 3, "end"]
    rows = told[-1]["result"]["variants"]
    assert [row["variant"] for row in rows] == ["baseline", "quantized", "scaled"]
    # the same as the command line says of the same file
    (tmp_path / "cat.jpg").write_bytes(photo)
    command = [
        sys.executable,
        bundle_folder / "runtime/compare.py",
        "--image",
        tmp_path / "cat.jpg",
        "--budget",
        "0.1",
        "--json",
        tmp_path / "r.json",
    ]
    subprocess.run(command, check=True, capture_output=True)
    for row, other in zip(rows, json.loads((tmp_path / "r.json").read_text())["variants"], strict=True):
        assert row["predictions"][0]["labels"] == other["predictions"][0]["labels"]
        assert row["predictions"][0]["probabilities"] == pytest.approx(other["predictions"][0]["probabilities"], abs=1e-4)
        assert row["agreement"]["n"] == 1
        assert row["error"] is None


def test_variants_can_be_chosen(port: int, photo: bytes) -> None:
    _, content, _ = ask(port, "POST", "/api/compare?variants=scaled", photo)
    assert [row["variant"] for row in events(content)[-1]["result"]["variants"]] == ["scaled"]
    status, content, _ = ask(port, "POST", "/api/compare?variants=nope", photo)
    assert status == 422
    assert "there is no variant 'nope'" in json.loads(content)["error"]


def test_the_bundle_and_health_are_told(port: int) -> None:
    status, content, _ = ask(port, "GET", "/api/bundle")
    told = json.loads(content)
    assert status == 200
    assert [v["variant"] for v in told["variants"]] == ["baseline", "quantized", "scaled"]
    assert told["max_upload_bytes"] == serve.MAX_UPLOAD_BYTES
    assert json.loads(ask(port, "GET", "/api/health")[1])["status"] == "ok"


def test_the_page_carries_a_strict_policy_that_fits_it(port: int) -> None:
    status, content, headers = ask(port, "GET", "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert b"<!--data-->" not in content
    assert not re.search(rb"""(?:src|href)=["']https?:""", content)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/../manifest.json", 404),
        ("GET", "/models/baseline.onnx", 404),
        ("PUT", "/", 405),
        ("GET", "/api/compare", 405),
    ],
)
def test_nothing_else_is_served(method: str, path: str, status: int, port: int) -> None:
    assert ask(port, method, path)[0] == status


def hostile() -> dict[str, tuple[bytes, int]]:
    """Bodies that must be refused, with the status each gets."""
    whole = encoded(Image.effect_noise((300, 300), 80).convert("RGB"), "JPEG")
    return {
        "empty": (b"", 415),
        "text": (b"this is not a picture at all", 415),
        "script": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        "truncated": (whole[: len(whole) // 2], 422),
        "bomb": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), 422),
        "pixels": (encoded(Image.new("1", (9_000, 9_000)), "PNG"), 422),
        "liar": (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, 422),
        "oversized": (b"\xff\xd8\xff" + b"\0" * serve.MAX_UPLOAD_BYTES, 413),
    }


@pytest.mark.parametrize("name", list(hostile()))
def test_hostile_uploads_get_their_status_and_a_sentence(name: str, port: int) -> None:
    body, status = hostile()[name]
    found, content, _ = ask(port, "POST", "/api/compare", body)
    assert found == status
    assert len(json.loads(content)["error"]) > 20


def test_an_oversized_stream_without_a_length_is_cut(port: int) -> None:
    def endless() -> Iterator[bytes]:
        yield b"\xff\xd8\xff"
        for _ in range(40):
            yield b"\0" * 1_000_000

    assert ask(port, "POST", "/api/compare", endless())[0] == 413
    assert ask(port, "GET", "/api/health")[0] == 200


def test_other_hosts_and_origins_are_refused(port: int, photo: bytes) -> None:
    assert ask(port, "GET", "/", Host="evil.example")[0] == 400
    assert ask(port, "POST", "/api/compare", photo, Origin="http://evil.example")[0] == 403
    assert ask(port, "POST", "/api/compare?variants=scaled", photo, Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_a_slow_upload_is_ended(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(serve, "BODY_SECONDS", 0.2)

    async def trickle() -> dict[str, object]:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"\xff\xd8\xff", "more_body": True}

    with pytest.raises(serve.Refused, match=r"took more than 0\.2 seconds") as error:
        asyncio.run(serve.read_body({"headers": []}, serve._chunks(trickle)))
    assert error.value.status == 408


def test_beyond_the_queue_is_503(port: int, photo: bytes) -> None:
    """Uploads that have begun and do not go on hold the places; the next one is told to come back."""
    held = []
    try:
        for _ in range(serve.QUEUE):
            connection = socket.create_connection(("127.0.0.1", port))
            head = f"POST /api/compare HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000\r\n\r\n".encode()
            connection.sendall(head + b"\xff\xd8\xff")
            held.append(connection)
        time.sleep(0.5)
        status, content, headers = ask(port, "POST", "/api/compare", photo)
        assert status == 503
        assert headers["retry-after"] == "60"
        assert "waiting already" in json.loads(content)["error"]
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.5)
    assert ask(port, "POST", "/api/compare?variants=scaled", photo)[0] == 200


@pytest.mark.slow
def test_two_hundred_uploads_from_eight_clients_half_of_them_hostile(bundle_folder: Path, photo: bytes) -> None:
    bodies = list(hostile().values())
    before = {p for p in bundle_folder.rglob("*") if "__pycache__" not in p.parts}
    with served(bundle_folder) as (port, running):

        def upload(k: int) -> tuple[int, int, bytes]:
            body, expected = bodies[(k // 2) % len(bodies)] if k % 2 else (photo, 200)
            while True:
                status, content, _ = ask(port, "POST", "/api/compare?variants=scaled", body)
                if status != 503:
                    return status, expected, content
                time.sleep(0.1)

        list(map(upload, range(16)))
        memory = status_field(running.pid, "VmRSS")
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(upload, range(200)))
        assert [status for status, _, _ in answers] == [expected for _, expected, _ in answers]
        said = {json.dumps(events(c)[-1]["result"]["variants"][0]["predictions"]) for s, _, c in answers if s == 200}
        assert len(said) == 1  # every good one answered, and alike
        assert status_field(running.pid, "VmRSS") < memory + 40_000_000
        assert not list(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split())
    assert {p for p in bundle_folder.rglob("*") if "__pycache__" not in p.parts} == before


def test_the_pc_opens_the_same_page(bundle_folder: Path, photo: bytes) -> None:
    command = [sys.executable, "-m", "vgg_export", "serve", "--bundle", str(bundle_folder), "--port", "0"]
    with serving(command, command_environment()) as (number, _):
        content = ask(number, "GET", "/")[1]
        status, answer, _ = ask(number, "POST", "/api/compare?variants=scaled", photo)
    assert content == page.live()[0]
    assert (status, events(answer)[-1]["event"]) == (200, "end")


def test_the_server_itself_is_small(bundle_folder: Path) -> None:
    with served(bundle_folder) as (_, running):
        assert status_field(running.pid, "VmHWM") <= 60_000_000


def test_a_variant_that_dies_is_a_row(bundle_copy: Path, photo: bytes) -> None:
    with served(bundle_copy) as (port, _):
        (bundle_copy / "models/quantized.onnx").write_bytes(b"damaged after the start")
        status, content, _ = ask(port, "POST", "/api/compare", photo)
        assert status == 200
        errors = [row["error"] is not None for row in events(content)[-1]["result"]["variants"]]
        assert errors == [False, True, False]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--serve", "--json", "x.json"), "--json does not go with --serve"),
        (("--port", "1"), "--port and --host belong to --serve"),
        (("--serve", "--host", "not-an-address-of-this-machine.invalid"), "cannot listen on"),
        (("--serve", "--port", "70000"), "expected 0 to 65535"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: tuple[str, ...], sentence: str, bundle_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, bundle_folder / "runtime/compare.py", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_without_uvicorn_there_is_one_sentence(bundle_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, bundle_folder / "runtime/compare.py", "--serve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)}, timeout=60)
    assert done.returncode == 2
    assert "pip install -r requirements-web.txt" in done.stderr


def test_the_report_is_the_same_page_with_the_result_in_it(bundle_copy: Path, tmp_path: Path) -> None:
    result = {"images": [{"file": "x</script><script>alert(1)</script>.png", "label": "<b>"}], "variants": []}
    Image.new("RGB", (900, 600), "red").save(tmp_path / "x.png")
    text = page.report(result, [tmp_path / "x.png"])
    assert text.count("</script>") == 2  # of the data and of the program
    data = re.search(r'<script type="application/json" id="result">(.*?)</script>', text, re.DOTALL)
    assert data
    loaded = json.loads(data[1])
    assert loaded["images"][0]["file"] == result["images"][0]["file"]
    assert loaded["images"][0]["thumbnail"].startswith("data:image/jpeg;base64,")
    template = page.TEMPLATE.read_text()
    assert page.policy(template, live=False) in text
    assert "connect-src 'none'" in text


def built(top1: float | None, agreement: float) -> dict:
    return {"n": 1000, "top1": None if top1 is None else {"rate": top1}, "agreement": {"rate": agreement}}


def row(name: str, p50: float | None, figures: dict | None, error: str | None = None) -> dict:
    return {"variant": name, "p50_ms": p50, "speedup": None if p50 is None else 100 / p50, "built": figures, "error": error}


def test_the_fastest_that_loses_little_is_recommended() -> None:
    rows = [
        row("baseline", 100, built(0.90, 1)),
        row("good", 50, built(0.895, 0.97)),
        row("fast", 20, built(0.88, 0.99)),
        row("dead", None, built(0.90, 1), "did not fit"),
    ]
    chosen = recommend.recommend(rows, "baseline")
    assert chosen["variant"] == "good"
    assert "89.5 % against 90.0 % on 1000 test images" in chosen["reason"]
    assert recommend.recommend(rows, "baseline", 2.5)["variant"] == "fast"
    unlabelled = [row("baseline", 100, built(None, 1)), row("a", 10, built(None, 0.98)), row("b", 20, built(None, 0.995))]
    assert recommend.recommend(unlabelled, "baseline")["variant"] == "b"
    few = [row("baseline", 100, built(0.9, 1) | {"n": 40}), row("a", 10, built(0.9, 0.5) | {"n": 40})]
    assert recommend.recommend(few, "baseline")["variant"] is None
    assert "40 test images are too few" in recommend.recommend(few, "baseline")["reason"]
    alone = recommend.recommend([row("a", 10, built(0.9, 0.98))], "baseline")
    assert (alone["variant"], "the baseline was not run" in alone["reason"]) == (None, True)
    nothing = recommend.recommend([row("baseline", 100, None)], "baseline")
    assert nothing["variant"] is None
    assert "no figures on test images" in nothing["reason"]
