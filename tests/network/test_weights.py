import contextlib
import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import small_checkpoint, small_torchvision_vgg

from vgg_export import inputs
from vgg_export.core import internet
from vgg_export.core.errors import CheckpointError, HubError
from vgg_export.core.progress import Quiet
from vgg_export.data import wordnet
from vgg_export.network import chain, weights
from vgg_export.network import checkpoint as checkpoints
from vgg_export.options import WeightsOptions


def test_labels_that_cannot_be_read_are_said_before_weights_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_random", lambda _: pytest.fail("weights were drawn"))
    with pytest.raises(CheckpointError, match=r"nowhere\.txt"):
        weights.find(WeightsOptions("random", Path("nowhere.txt")))


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """A real HTTP server on loopback; yields its address."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A 1000-class VGG19 under the name torchvision gives such files: vgg19-<first 8 hex digits of its
    sha256>.pth."""
    folder = tmp_path / "published"
    folder.mkdir()
    plain = folder / "vgg19.pth"
    torch.save(small_torchvision_vgg("vgg19", False, classes=1000).state_dict(), plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    return plain.rename(folder / f"vgg19-{digest[:8]}.pth")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(weights.MIRROR_VARIABLE, raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_imagenet_is_downloaded_once_and_then_cached(
    published: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(published.parent) as address:
        monkeypatch.setenv(weights.MIRROR_VARIABLE, f"{address}/{published.name}")
        first = weights.resolve(WeightsOptions("imagenet"))
    assert (empty_hub / published.name).read_bytes() == published.read_bytes()
    assert (first.chain.family, first.chain.classes, first.labels[281]) == ("vgg19", 1000, "tabby")
    assert first.provenance.kind == "imagenet"
    second = weights.resolve(WeightsOptions("auto"))  # the server is gone: only the cache can have answered
    assert second.provenance.kind == "imagenet"
    assert torch.equal(first.tensors["fc1.weight"], second.tensors["fc1.weight"])


def test_a_wrong_hash_is_refused_when_downloaded_and_when_cached(
    published: Path, empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = published.rename(published.with_name("vgg19-00000000.pth"))
    with server(wrong.parent) as address:
        monkeypatch.setenv(weights.MIRROR_VARIABLE, f"{address}/{wrong.name}")
        with pytest.raises(HubError, match="invalid hash value"):
            weights.resolve(WeightsOptions("imagenet"))
    assert list(empty_hub.iterdir()) == []
    (empty_hub / wrong.name).write_bytes(wrong.read_bytes())
    with pytest.raises(HubError, match="does not have the sha256 00000000"):
        weights.resolve(WeightsOptions("imagenet"))


def test_a_wrong_class_count_under_imagenets_name_is_refused(
    empty_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_hub.mkdir(parents=True)
    plain = empty_hub / "plain.pth"
    torch.save(small_torchvision_vgg("vgg19", False, classes=7).state_dict(), plain)
    name = f"vgg19-{hashlib.sha256(plain.read_bytes()).hexdigest()[:8]}.pth"
    plain.rename(empty_hub / name)
    monkeypatch.setenv(weights.MIRROR_VARIABLE, f"http://127.0.0.1:9/{name}")
    with pytest.raises(CheckpointError, match="a vgg19 of 7 classes; expected vgg19 of 1000"):
        weights.resolve(WeightsOptions("imagenet"))


def test_a_mirror_whose_file_cannot_be_checked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.MIRROR_VARIABLE, "http://127.0.0.1:9/vgg19.pth")
    with pytest.raises(HubError, match="must end in the first hex digits of its sha256"):
        weights.resolve(WeightsOptions("imagenet"))


def test_auto_falls_back_to_the_demo_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(weights.MIRROR_VARIABLE, "http://127.0.0.1:9/vgg19-dcbb9e9d.pth")
    checkpoint = weights.resolve(WeightsOptions("auto"))
    assert checkpoint.provenance.kind == "demo"
    assert (checkpoint.provenance.notice or "").startswith("DEMO WEIGHTS")
    assert "--weights imagenet" in (checkpoint.provenance.notice or "")


@pytest.mark.timeout(100)  # this is what fails where it waits for an answer
def test_a_server_that_never_answers_does_not_hang() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert internet.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth", seconds=1.0)


def test_a_missing_file_on_the_server_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(tmp_path) as address:
        monkeypatch.setenv(weights.MIRROR_VARIABLE, f"{address}/vgg19-dcbb9e9d.pth")
        with pytest.raises(HubError, match=r"404.*use --weights demo"):
            weights.resolve(WeightsOptions("imagenet"))


def test_random_is_full_size_seeded_and_without_figures() -> None:
    checkpoint = weights.resolve(WeightsOptions("random", seed=3))
    assert checkpoint.chain == chain.full_width("vgg19")
    assert (checkpoint.provenance.figures_absent or "").startswith("random weights")
    torch.manual_seed(3)
    assert float(checkpoint.tensors["conv5_4.weight"].std()) == pytest.approx(
        (2 / (512 * 9)) ** 0.5, rel=0.01
    )


def test_a_file_takes_its_labels_from_a_file_or_the_folders(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.save(small_torchvision_vgg("vgg13", True).state_dict(), path)
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\nf\ng\n")
    assert weights.resolve(WeightsOptions(str(path), names)).labels == tuple("abcdefg")
    assert weights.resolve(WeightsOptions(str(path)), lambda: tuple("gfedcba")).labels == tuple("abcdefg")
    assert weights.resolve(WeightsOptions(str(path))).labels[6] == "class 6"
    names.write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="has 2 class names, the checkpoint has 7 classes"):
        weights.resolve(WeightsOptions(str(path), names))
    with pytest.raises(CheckpointError, match="has 7 classes, the data has 3 class folders"):
        weights.resolve(WeightsOptions(str(path)), lambda: ("x", "y", "z"))


def test_a_file_called_like_a_word_of_the_option_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.save(small_checkpoint(), Path("demo"))
    made = inputs.checkpoint_file(WeightsOptions("demo"), None, tmp_path / "work", Quiet())
    assert checkpoints.load(made.path).provenance.kind == "demo"


def test_our_own_checkpoint_is_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    checkpoints.save(small_checkpoint("vgg16"), path)
    again = weights.resolve(WeightsOptions(str(path)))
    assert again.chain.family == "vgg16"
    assert again.labels[0] == "stop"


def test_the_thousand_wordnet_ids_are_in_imagenets_order() -> None:
    ids = wordnet.wordnet_ids()
    assert len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    assert (ids[0], ids[281], ids[999]) == ("n01440764", "n02123045", "n15075141")
