"""Names of classes in the order of the outputs, out of a checkpoint's file and out of --labels."""

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, small_checkpoint, small_torchvision_vgg
from safetensors.torch import save_file
from torchvision.models import VGG19_Weights

from vgg_export import inputs
from vgg_export.core.errors import CheckpointError
from vgg_export.core.progress import Quiet
from vgg_export.network import checkpoint as checkpoints
from vgg_export.network import weights
from vgg_export.network.readers import class_names
from vgg_export.options import DataOptions, WeightsOptions

# no alphabet's order
TRAINED = ("yield", "stop", "ahead only", "parking", "no entry", "roundabout", "priority road")


def saved(folder: Path, **beside: Any) -> Path:
    path = folder / "mine.pth"
    torch.save({"epoch": 3, "state_dict": small_torchvision_vgg("vgg11", False).state_dict(), **beside}, path)
    return path


def resolved(
    path: Path, labels: Path | None = None, folders: tuple[str, ...] | None = None
) -> checkpoints.Checkpoint:
    return weights.resolve(WeightsOptions(str(path), labels), lambda: folders)


BY_NUMBER = dict(enumerate(TRAINED))
BY_NAME = {name: k for k, name in enumerate(TRAINED)}


@pytest.mark.parametrize(
    "beside",
    [
        {"class_to_idx": dict(reversed(BY_NAME.items()))},
        {"class_to_idx": {name: torch.tensor(k) for name, k in BY_NAME.items()}},
        {"class_to_idx": {name: str(k) for name, k in BY_NAME.items()}},
        {"class_to_idx": {name: float(k) for name, k in BY_NAME.items()}},
        {"idx_to_class": BY_NUMBER},
        {"idx_to_class": {str(k): name for k, name in BY_NUMBER.items()}},
        {"classes": list(TRAINED)},
        {"labels": TRAINED},
        {"labels": {str(k): name for k, name in BY_NUMBER.items()}},
        {"class_names": list(TRAINED)},
        {"hyper_parameters": {"lr": 0.1, "classes": list(TRAINED)}},
        {"classes": 7, "labels": [0, 3, 3, 1], "class_to_idx": BY_NAME},  # the first two name nothing
        {"classes": list(TRAINED), "class_to_idx": BY_NAME},
    ],
    ids=lambda beside: "-".join(beside),
)
def test_the_files_own_names_are_the_labels_whatever_the_folders_order(
    beside: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = resolved(saved(tmp_path, **beside), folders=tuple(sorted(TRAINED)))
    assert found.labels == TRAINED
    assert "alphabet" not in caplog.text
    assert found.provenance.names_from == "checkpoint"
    assert weights.ALPHABET not in found.provenance.assumed


def test_numbers_as_names_keep_their_own_order(tmp_path: Path) -> None:
    """As in flower data sets: class "10" is number 1."""
    names = {"1": 0, "10": 1, "100": 2, "101": 3, "102": 4, "11": 5, "12": 6}
    assert resolved(saved(tmp_path, class_to_idx=names)).labels == tuple(names)


def test_names_among_bare_tensors_and_in_safetensors_metadata(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in small_torchvision_vgg("vgg11", False).state_dict().items()}
    torch.save({**state, "class_to_idx": BY_NAME}, tmp_path / "bare.pth")
    save_file(
        state,
        tmp_path / "meta.safetensors",
        {"classes": json.dumps(TRAINED), "format": "pt", "note": "{not JSON"},
    )
    for name in ("bare.pth", "meta.safetensors"):
        assert resolved(tmp_path / name).labels == TRAINED


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (
            {"class_to_idx": {name: k + 1 for name, k in BY_NAME.items()}},
            "numbers its 7 classes 1, 2, 3, 4, 5, 6, 7; expected each of 0 to 6",
        ),
        (
            {"class_to_idx": dict.fromkeys(TRAINED, 0)},
            "numbers its 7 classes 0; expected each of 0 to 6 once",
        ),
        (
            {"class_to_idx": {name.encode(): k for k, name in enumerate(TRAINED)}},
            "expected names and their numbers",
        ),
        (
            {"classes": list(TRAINED[:5])},
            "classes in mine.pth has 5 class names, the checkpoint has 7 classes",
        ),
        ({"classes": [*TRAINED[:6], "two\nlines"]}, "expected a name of one line"),
        (
            {"classes": list(TRAINED), "class_to_idx": {name: k for k, name in enumerate(CLASSES)}},
            "contradicts itself: ",
        ),
    ],
)
def test_names_without_an_order_are_refused_unless_labels_give_one(
    beside: dict[str, Any], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, **beside)
    with pytest.raises(CheckpointError) as error:
        resolved(path)
    assert words in str(error.value)
    assert "--labels" in str(error.value)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES))
    assert resolved(path, tmp_path / "names.txt").labels == CLASSES
    assert "the names of --labels are taken" in caplog.text


def test_labels_that_contradict_the_file_are_an_error_with_both(tmp_path: Path) -> None:
    path, names = saved(tmp_path, class_to_idx=BY_NAME), tmp_path / "names.txt"
    names.write_text("\n".join(sorted(TRAINED)))
    with pytest.raises(CheckpointError) as error:
        resolved(path, names)
    assert "ahead only, no entry, parking" in str(error.value)
    assert "yield, stop, ahead only" in str(error.value)
    assert "first at class 0 ('ahead only' against 'yield')" in str(error.value)
    # the same, spelt otherwise
    names.write_text("\n".join(name.upper().replace(" ", "_") for name in TRAINED))
    assert resolved(path, names).labels[2] == "AHEAD_ONLY"
    own = tmp_path / "own.safetensors"
    checkpoints.save(resolved(path), own)  # what was made of it knows where its names come from
    names.write_text("\n".join(sorted(TRAINED)))
    with pytest.raises(CheckpointError, match="contradicts the checkpoint"):
        resolved(own, names)


def test_the_alphabet_is_said_every_time_and_goes_with_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = tmp_path / "own.safetensors"
    for _ in range(2):
        caplog.clear()
        found = resolved(saved(tmp_path), folders=TRAINED)
        assert found.labels == tuple(sorted(TRAINED))
        assert "the alphabet of the folders is assumed" in caplog.text
    checkpoints.save(found, own)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        inputs.checkpoint_file(WeightsOptions(str(own)), DataOptions(), tmp_path, Quiet())
    assert weights.ALPHABET in caplog.text
    (tmp_path / "names.txt").write_text("\n".join(TRAINED))
    assert weights.ALPHABET not in resolved(own, tmp_path / "names.txt").provenance.assumed
    assert (
        weights.ALPHABET not in resolved(saved(tmp_path), tmp_path / "names.txt", TRAINED).provenance.assumed
    )


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(TRAINED),
        "\ufeff" + "\r\n".join(TRAINED) + "\r\n\r\n",
        json.dumps(TRAINED),
        json.dumps({str(k): name for k, name in BY_NUMBER.items()}),
        json.dumps(BY_NAME),
        json.dumps({"class_to_idx": BY_NAME}),
        json.dumps({"id2label": BY_NUMBER, "label2id": BY_NAME, "architectures": ["VGG"], "num_labels": 7}),
        json.dumps({"training": {"class_names": TRAINED}, "epochs": 3}),
        "\ufeff" + json.dumps([unicodedata.normalize("NFC", name) for name in TRAINED]),
        "".join(f"{k} {name}\n" for k, name in BY_NUMBER.items()),
        "ClassId,Name\n" + "".join(f'{k},"{name}"\n' for k, name in BY_NUMBER.items()),
        "".join(f"{name}; {k}\n" for name, k in sorted(BY_NAME.items())),
        "".join(f"{k}: {name}\n" for k, name in reversed(BY_NUMBER.items())),
    ],
    ids=[
        *("lines", "windows", "list", "by number", "by name", "as in a checkpoint", "of a model card"),
        *("within an entry", "with a mark", "numbered", "a table", "numbers behind", "in another order"),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_labels_are_lines_or_json(text: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".json" and not text.startswith(("{", "[")):
        return
    (tmp_path / f"names{suffix}").write_text(text, encoding="utf-8")
    assert class_names.read(tmp_path / f"names{suffix}").names == TRAINED


@pytest.mark.parametrize(
    "names",
    [
        ("class 0", "class 1", "class 2"),
        ("0", "1", "10", "2"),
        ("1 cent", "2 cent", "5 cent"),
        ("speed 0", "speed 1"),
        ("7 of clubs", "8 of clubs"),
        ("0 cat",),
        ("cat, 1", "dog, 2"),
    ],
)
def test_numbers_in_names_are_part_of_them(names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert class_names.read(tmp_path / "names.txt").names == names


def test_labels_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(json.dumps({"classes": TRAINED, "class_names": sorted(TRAINED)}))
    with pytest.raises(CheckpointError, match=r"names\.json contradicts itself"):
        class_names.read(tmp_path / "names.json")


@pytest.mark.parametrize("kind", [object, str])
def test_a_numpy_array_of_names_is_read(kind: type, tmp_path: Path) -> None:
    assert resolved(saved(tmp_path, labels=np.array(TRAINED, dtype=kind))).labels == TRAINED
    accented = ("caf\u00e9", *TRAINED[1:])
    assert resolved(saved(tmp_path, classes=np.array(accented, dtype=kind))).labels == accented


@pytest.mark.release
def test_an_array_of_another_kind_is_said_not_to_be_read(tmp_path: Path) -> None:
    raw = np.array([name.encode() for name in TRAINED])
    with pytest.raises(CheckpointError, match=r"labels in mine\.pth is a NumPy array of .* save it as list"):
        resolved(saved(tmp_path, labels=raw))
    (tmp_path / "names.txt").write_text("\n".join(TRAINED))
    assert resolved(saved(tmp_path, labels=raw), tmp_path / "names.txt").labels == TRAINED
    assert resolved(saved(tmp_path, labels=raw, class_to_idx=BY_NAME)).labels == TRAINED
    numbers = np.array([0, 3, 3])  # the classes of pictures
    assert resolved(saved(tmp_path, labels=numbers)).labels[0] == "class 0"


def test_a_name_twice_is_refused_in_labels(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nbird\ndog\n")
    with pytest.raises(CheckpointError, match="names the classes 1 and 3 the same: 'dog'"):
        class_names.read(tmp_path / "names.txt")
    names = VGG19_Weights.IMAGENET1K_V1.meta["categories"]  # has "crane" twice
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert class_names.read(tmp_path / "names.txt").names == tuple(names)


@pytest.mark.parametrize("text", ['{"0": "cat",', "['cat', 'dog']", '["cat",\n"dog"', "{\n"])
def test_broken_json_is_no_list_of_lines(text: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(CheckpointError, match=r"names\.txt is not readable JSON"):
        class_names.read(tmp_path / "names.txt")


def test_labels_that_are_not_there_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"there is no file .*none\.txt; expected one class name a line"
    ):
        class_names.read(tmp_path / "none.txt")


def test_names_are_the_same_in_every_unicode_form(tmp_path: Path) -> None:
    """In the checkpoint and in --labels."""
    accented = (*TRAINED[:6], "priorit\u00e9")
    path = saved(tmp_path, classes=[unicodedata.normalize("NFD", name) for name in accented])
    (tmp_path / "names.txt").write_text("\n".join(accented), encoding="utf-8")
    assert resolved(path, tmp_path / "names.txt").labels == accented


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"0": "cat"', "is not readable JSON"),
        ("[1, 2]", "holds a list with entries such as 1; expected a list of names"),
        ("{}", "holds an empty object; expected a list of names"),
        ('{"0": ["n01440764", "tench"]}', "holds an object with entries such as '0': ['n01440764', 'tench']"),
        ('{"cat": 0, "dog": 2}', "numbers its 2 classes 0, 2; expected each of 0 to 1 once"),
        ("7", "holds 7; expected a list of names"),
    ],
)
def test_other_json_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text(text)
    with pytest.raises(CheckpointError) as error:
        class_names.read(tmp_path / "names.json")
    assert words in str(error.value)
    (tmp_path / "names.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read as UTF-8"):
        class_names.read(tmp_path / "names.json")


def test_what_a_state_dict_does_not_say_is_said_to_be_assumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = resolved(saved(tmp_path))
    (line,) = [record.getMessage() for record in caplog.records if "assumed" in record.getMessage()]
    for word in ("ReLU", "ImageNet's mean and standard deviation", "256 px", "224 x 224 px", "softmax"):
        assert word in line
    assert found.provenance.assumed == (
        "ReLU behind every layer but the last (else --activation)",
        "an input of 224 x 224 px (else --input-px)",
        "RGB with ImageNet's mean and standard deviation (else --normalize and --bgr)",
        "the shorter side to 256 px, the middle 224 px taken (else --resize)",
        "one class per picture (softmax) (else --output-kind)",
    )
    assert not weights.resolve(WeightsOptions("demo")).provenance.assumed
    assert not small_checkpoint().provenance.assumed


def test_other_weights_in_the_file_are_said_with_how_to_take_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = small_torchvision_vgg("vgg11", False, seed=1).state_dict()
    path = saved(tmp_path, state_dict_ema=averaged)
    taken = resolved(path)
    assert "under ['state_dict_ema'], which are left aside" in caplog.text
    command = caplog.text.split("to take them: ")[1].splitlines()[0]
    assert repr(str(path)) in command
    # what it advises
    exec(command.replace("'other.pth'", repr(str(tmp_path / "other.pth"))), {"torch": torch})
    other = resolved(tmp_path / "other.pth")
    assert other.tensors["fc3.bias"].equal(averaged["classifier.6.bias"])
    assert not other.tensors["fc3.bias"].equal(taken.tensors["fc3.bias"])


def test_a_line_may_begin_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("[background]\ncat\n")
    assert class_names.read(tmp_path / "names.txt").names == ("[background]", "cat")
