import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import CLASSES
from PIL import Image

from vgg_calibration import choose
from vgg_export.core import internet
from vgg_export.core.errors import DataError, HubError, OptionsError
from vgg_export.core.progress import Quiet
from vgg_export.data import drawn, signs, tensors
from vgg_export.data import splits as data_splits
from vgg_export.data.wordnet import wordnet_ids
from vgg_export.options import DataOptions, DrawOptions
from vgg_runtime.bundle.input_spec import InputSpec, for_input
from vgg_runtime.bundle.preprocess import open_image, to_tensor


def resolve(
    spec: Path | str | None, labels: tuple[str, ...] = CLASSES, *, kind: str = "file", **options: int
) -> data_splits.Splits:
    chosen = DataOptions(None if spec is None else str(spec), **options)
    return data_splits.resolve(chosen, kind, labels, None, Path("unused"), Quiet())


def pictures(folder: Path, count: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(first, first + count):
        signs.draw(signs.CLASSES[k % 20], k, 40).save(folder / f"{k}.png")
    return folder


def test_the_three_sets_are_disjoint_and_labelled(splits: data_splits.Splits) -> None:
    hashes = [{i.sha256 for i in part} for part in (splits.fit, splits.select, splits.test)]
    assert [len(h) for h in hashes][2] == 42
    assert len(hashes[0]) + len(hashes[1]) == 63  # 49 in train, 14 in val
    assert not hashes[0] & hashes[1]
    assert not (hashes[0] | hashes[1]) & hashes[2]
    assert all(
        CLASSES[i.label] == i.path.parent.name for i in (*splits.fit, *splits.test) if i.label is not None
    )


def test_a_flat_folder_is_split_by_content_not_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = resolve(pictures(tmp_path / "a", 40))
    assert caplog.messages == []  # none of the test pictures had to be taken out again
    assert (len(first.fit), len(first.select), len(first.test)) == (20, 8, 12)
    assert all(i.label is None for i in first.fit)
    renamed = tmp_path / "b"
    renamed.mkdir()
    for path in (tmp_path / "a").iterdir():
        shutil.copy(path, renamed / f"x{hash(path.name) % 1000}{path.name}")
    second = resolve(renamed)
    for part in ("fit", "select", "test"):
        assert {i.sha256 for i in getattr(first, part)} == {i.sha256 for i in getattr(second, part)}


def test_copies_of_one_source_stay_in_one_set(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    for k in range(90):
        signs.draw("stop", k, 40).save(folder / f"photo{k // 3}_jpg.rf.{k:032x}.png")
    found = resolve(folder)
    sources = [{i.source for i in part} for part in (found.fit, found.select, found.test)]
    assert not sources[0] & sources[1]
    assert not (sources[0] | sources[1]) & sources[2]
    assert sum(map(len, sources)) == 30
    with pytest.raises(DataError, match="must not share pictures"):
        data_splits.Splits("x", found.fit, found.select, (found.fit[0],))


def test_a_picture_that_is_also_trained_on_leaves_the_test(signs_folder: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(signs_folder, tmp_path / "leaky"))
    leaked = next((root / "train" / "stop").iterdir())
    shutil.copy(leaked, root / "test" / "stop" / "leak.png")
    found = resolve(root)
    assert len(found.test) == 42
    assert not {i.sha256 for i in found.test} & {choose.content_hash(leaked)}


def test_few_pictures_only_calibrate(tmp_path: Path) -> None:
    found = resolve(pictures(tmp_path / "few", 5))
    assert (len(found.fit), found.select, found.test) == (5, (), ())
    assert found.note is not None
    assert "too few" in found.note


def test_the_number_of_test_images_is_limited(signs_folder: Path) -> None:
    assert len(resolve(signs_folder, test_images=10).test) == 10


def test_folders_are_mapped_by_name_and_by_wordnet_id(tmp_path: Path) -> None:
    for k, folder in enumerate(("Tabby", "n03063599")):
        pictures(tmp_path / "photos" / folder, 10, first=100 * k)
    from torchvision.models import VGG19_Weights

    labels = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"])
    found = data_splits.resolve(
        DataOptions(str(tmp_path / "photos")), "imagenet", labels, wordnet_ids(), tmp_path, Quiet()
    )
    assert {i.label for i in (*found.fit, *found.select, *found.test)} == {281, 504}


def test_unknown_folders_list_both_sides(tmp_path: Path) -> None:
    pictures(tmp_path / "photos" / "moose", 3)
    pictures(tmp_path / "photos" / "stop", 3, first=10)
    with pytest.raises(DataError) as error:
        resolve(tmp_path / "photos")
    assert "1 of 2 class folders are no class of the model: moose" in str(error.value)
    assert "roundabout" in str(error.value)
    assert "or give the names in order with --labels" in str(error.value)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        resolve(tmp_path / "empty")
    with pytest.raises(DataError, match="there is no folder"):
        resolve(tmp_path / "nowhere")
    mixed = pictures(tmp_path / "mixed", 2)
    pictures(mixed / "stop", 2, first=5)
    with pytest.raises(DataError, match="beside its class folders"):
        resolve(mixed)
    broken = pictures(tmp_path / "broken", 3)
    (broken / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    (broken / "worse.png").write_text("x")
    with pytest.raises(DataError, match=r"bad\.jpg.*1 more pictures cannot be read"):
        resolve(broken)


def test_one_damaged_picture_in_twenty_is_left_out_and_more_are_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted over all parts together: val/ and test/ are often small."""
    root = tmp_path / "d"
    for k, part in enumerate(("train", "val", "test")):
        pictures(root / part / "stop", 13, first=100 * k)
    whole = resolve(root)
    (root / "val" / "stop" / "empty.jpg").write_bytes(b"")
    found = resolve(root)
    assert found == whole
    assert "1 of 40 pictures cannot be read and is left out: " in caplog.text
    assert "empty.jpg is empty" in caplog.text
    (root / "test" / "stop" / "half.png").write_bytes((root / "test" / "stop" / "200.png").read_bytes()[:300])
    (root / "train" / "yield").mkdir()
    caplog.clear()
    assert resolve(root) == whole  # 2 of 41 are less than 5 %
    assert "2 of 41 pictures cannot be read and are left out: " in caplog.text
    assert caplog.text.count("half.png") + caplog.text.count("empty.jpg") == 2
    (root / "test" / "stop" / "text.png").write_text("a web page")
    with pytest.raises(DataError) as error:
        resolve(root)
    assert "(2 more pictures cannot be read either: " in str(error.value)
    assert "; 3 of 42 pictures are unreadable, up to 5% are left out: remove or repair" in str(error.value)


def test_one_damaged_picture_is_left_out_of_a_few_but_not_the_only_one(tmp_path: Path) -> None:
    few = pictures(tmp_path / "few", 4)
    (few / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert len(resolve(few).fit) == 4
    for k in range(4):
        (few / f"{k}.png").unlink()
    with pytest.raises(DataError, match=r"bad\.jpg.*1 of 1 pictures are unreadable"):
        resolve(few)


def test_each_picture_is_decoded_once_and_the_work_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "d"
    for k, part in enumerate(("train", "test")):
        pictures(root / part / "stop", 13, first=100 * k)
    opened: list[Path] = []

    def counting(path: Path, spec: InputSpec) -> Image.Image:
        opened.append(path)
        return open_image(path, spec)

    monkeypatch.setattr(data_splits, "open_image", counting)
    shown = Counting()
    assert data_splits.class_folders(DataOptions(str(root))) == ("stop",)
    data_splits.resolve(DataOptions(str(root)), "file", CLASSES, None, Path("unused"), shown)
    assert sorted(opened) == sorted(root.rglob("*.png"))
    assert shown.tasks == [(f"reading {root}", 26)]
    assert shown.steps == 26


class Counting(Quiet):
    """What was shown: the tasks with their totals, and all steps."""

    def __init__(self) -> None:
        self.tasks: list[tuple[str, int | None]] = []
        self.steps = 0

    @contextlib.contextmanager
    def task(self, label: str, total: int | None) -> Iterator["Counting"]:
        self.tasks.append((label, total))
        yield self

    def advance(self, steps: int = 1) -> None:
        self.steps += steps


def test_what_was_read_and_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = pictures(tmp_path / "d", 14)
    (root / "x.heic").write_text("x")
    with caplog.at_level(logging.INFO):
        resolve(root)
    assert f"{root}: 14 of 15 used: 1 with unknown suffix (.heic)" in caplog.messages


def test_unseen_pictures_are_those_of_the_held_part(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for k, part in enumerate(("Training", "valid")):
        pictures(root / "pets" / part / "images" / "stop", 13, first=100 * k)
        pictures(root / "pets" / part / "images" / "yield", 13, first=1000 + 100 * k)
    (root / "pets" / "valid" / "images" / "stop" / "bad.jpg").write_bytes(b"")
    given = (DataOptions(str(root)), "file", CLASSES, None)
    found = data_splits.unseen(*given, frozenset(), Path("unused"), Quiet())
    assert len(found) == 26
    assert {i.path.parents[2].name for i in found} == {"valid"}
    assert {i.label for i in found} == {CLASSES.index("stop"), CLASSES.index("yield")}


def test_versions_of_a_data_set_are_no_classes_and_the_error_says_which_folder_to_give(
    tmp_path: Path,
) -> None:
    for k, version in enumerate(("color", "grayscale")):
        for j, name in enumerate(("stop", "yield")):
            pictures(tmp_path / "d" / version / name, 3, first=100 * k + 10 * j)
    with pytest.raises(DataError, match=r"the folders in .*/d/color are classes: give --data .*/d/color"):
        resolve(tmp_path / "d")
    assert len(resolve(tmp_path / "d" / "color").fit) == 6


def test_drawn_signs_are_kept_and_foreign_folders_are_not_replaced(tmp_path: Path) -> None:
    wanted = DrawOptions(tmp_path / "drawn", train=40, test=20, size_px=48, val=20)
    drawn.draw_signs(wanted, Quiet())
    files = sorted((tmp_path / "drawn").rglob("*.jpg"))
    assert len(files) == 80
    assert len(list((tmp_path / "drawn" / "val").rglob("*.jpg"))) == 20
    assert Image.open(files[0]).size == (48, 48)
    times = [f.stat().st_mtime_ns for f in files]
    drawn.draw_signs(wanted, Quiet())
    assert [f.stat().st_mtime_ns for f in files] == times
    pictures(tmp_path / "mine", 1)
    with pytest.raises(DataError, match="was not drawn by this program"):
        drawn.draw_signs(DrawOptions(tmp_path / "mine", 20, 20, 48), Quiet())
    for bad in ({"train": 0}, {"val": -1}):
        with pytest.raises(OptionsError, match="expected positive counts"):
            DrawOptions(tmp_path, **bad)
    drawn.draw_signs(DrawOptions(tmp_path / "two", train=20, test=20, size_px=48), Quiet())
    assert not (tmp_path / "two" / "val").exists()


def test_the_demos_default_is_drawn_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (data_splits.SIGNS_TRAIN, data_splits.SIGNS_VAL) == (1280, 320)
    monkeypatch.setattr(data_splits, "SIGNS_TRAIN", 160)
    monkeypatch.setattr(data_splits, "SIGNS_VAL", 20)
    found = data_splits.resolve(DataOptions(test_images=40), "demo", signs.CLASSES, None, tmp_path, Quiet())
    assert len(found.test) == 40
    assert (len(found.fit), len(found.select)) == (160, 20)
    drawn = json.loads((tmp_path / "signs" / "drawn.json").read_text())
    assert drawn["test"] == 40


def test_the_sample_photographs_calibrate_when_there_is_nothing_else() -> None:
    found = resolve("none")
    assert len(found.fit) == 6
    assert not found.test
    sources = (data_splits.sample_photos() / "SOURCES.md").read_text()
    assert all(i.path.name in sources for i in found.fit)


def test_imagenette_is_read_from_its_cache_and_refused_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import VGG19_Weights

    labels = tuple(VGG19_Weights.IMAGENET1K_V1.meta["categories"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        "vgg_export.data.splits.reachable",
        lambda url: internet.reachable("http://127.0.0.1:9/" + url.rsplit("/", 1)[1]),
    )
    chosen = DataOptions("imagenette")
    with pytest.raises(HubError, match="Imagenette is not in"):
        data_splits.resolve(chosen, "imagenet", labels, wordnet_ids(), tmp_path, Quiet())
    quiet = data_splits.resolve(DataOptions(), "imagenet", labels, wordnet_ids(), tmp_path, Quiet())
    assert quiet.origin == "sample photographs"
    for part, count in (("train", 10), ("val", 4)):
        for k, wordnet in enumerate(("n01440764", "n03888257")):
            folder = tmp_path / "vgg-export" / "imagenette2-320" / part / wordnet
            folder.mkdir(parents=True)
            for j in range(count):
                seed = hash((part == "val", k, j)) % 100_000
                signs.draw("stop", seed, 40).save(folder / f"{seed}.JPEG")
    found = data_splits.resolve(chosen, "imagenet", labels, wordnet_ids(), tmp_path, Quiet())
    assert len(found.test) == 8
    assert {i.label for i in found.test} == {0, labels.index("parachute")}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for k, folder in enumerate(("train", "stop")):
        pictures(tmp_path / "veh" / folder, 8, first=100 * k)
    found = resolve(tmp_path / "veh", ("train", "stop"))
    assert {i.label for i in (*found.fit, *found.select, *found.test)} == {0, 1}
    pictures(tmp_path / "odd" / "train" / "stop", 3)
    pictures(tmp_path / "odd" / "extra", 3, first=50)
    with pytest.raises(DataError, match="holds train beside extra"):
        resolve(tmp_path / "odd")


SPELT = [
    ("Training", "Testing"),
    ("TRAIN", "VALID", "TEST"),
    ("training_set", "test_set"),
    ("train", "test1"),
    ("TrainingData", "validation_data"),
    ("train_images", "eval_images"),
    ("train", "evaluation", "test"),
    ("train_split", "test_split"),
    ("seg_train", "seg_test"),
]


@pytest.mark.parametrize("names", SPELT, ids="-".join)
def test_parts_are_found_in_their_common_spellings(names: tuple[str, ...], tmp_path: Path) -> None:
    """With class folders in them; the first is the one to fit on, and none of them is a class."""
    for k, part in enumerate(names):
        for j, label in enumerate(("stop", "yield")):
            pictures(tmp_path / "d" / part / label, 20, first=100 * k + 50 * j)
    assert data_splits.class_folders(DataOptions(str(tmp_path / "d"))) == ("stop", "yield")
    found = resolve(tmp_path / "d")
    of = {
        name: {i.path.parent.parent.name for i in getattr(found, name)} for name in ("fit", "select", "test")
    }
    assert of["fit"] == {names[0]}
    assert of["test"] == {names[-1]}
    # too few to divide: a fifth of train
    assert of["select"] == ({names[1]} if len(names) == 3 else {names[0]})
    assert {i.label for i in found.test} == {0, 1}


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("train", "test1"), ("Train", "Val", "Test")], ids="-".join
)
def test_parts_without_class_folders_are_unlabelled_and_no_classes(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    """This also holds for a checkpoint with as many classes as there are parts."""
    for k, part in enumerate(names):
        pictures(tmp_path / "d" / part, 20, first=100 * k)
    assert data_splits.class_folders(DataOptions(str(tmp_path / "d"))) is None
    found = resolve(tmp_path / "d", tuple(f"class {k}" for k in range(len(names))))
    assert {i.label for i in (*found.fit, *found.select, *found.test)} == {None}
    assert {i.path.parent.name for i in found.test} == {names[-1]}


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("train", "test"), ("train", "test")),  # a checkpoint's own classes
        (("train", "bus"), ()),
        (("Train", "test", "sample"), ("class 0", "class 1", "class 2")),
        (("trainers", "testers"), ()),
        (("seg_train", "seg_test"), ()),
    ],
)
def test_what_can_be_parts_or_classes_is_an_error_with_both_readings(
    names: tuple[str, ...], labels: tuple[str, ...], tmp_path: Path
) -> None:
    for k, folder in enumerate(names):
        pictures(tmp_path / "d" / folder, 8, first=100 * k)
    with pytest.raises(DataError) as error:
        resolve(tmp_path / "d", labels)
    assert "can be read in two ways" in str(error.value)
    assert "as parts of the data with unlabelled pictures" in str(error.value)
    assert f"{', '.join(sorted(names))} as classes" in str(error.value)
    # what it advises for classes: all of them in a new folder called train
    (tmp_path / "e").mkdir()
    shutil.move(tmp_path / "d", tmp_path / "e" / "train")
    assert data_splits.class_folders(DataOptions(str(tmp_path / "e"))) == tuple(sorted(names))
    found = resolve(tmp_path / "e", tuple(sorted(names)))
    assert {i.label for i in (*found.fit, *found.select)} == set(range(len(names)))


def test_a_valley_among_landscapes_is_a_class(tmp_path: Path) -> None:
    for k, folder in enumerate(("valley", "forest", "freight_train", "coast")):
        pictures(tmp_path / "d" / folder, 8, first=100 * k)
    assert data_splits.class_folders(DataOptions(str(tmp_path / "d"))) == (
        "coast",
        "forest",
        "freight_train",
        "valley",
    )


def test_a_part_within_a_part_of_the_same_name_is_gone_down(tmp_path: Path) -> None:
    for k, part in enumerate(("seg_train", "seg_test")):
        for j, label in enumerate(("stop", "yield")):
            pictures(tmp_path / "d" / part / part / label, 10, first=100 * k + 50 * j)
    assert data_splits.class_folders(DataOptions(str(tmp_path / "d"))) == ("stop", "yield")


def test_two_folders_for_one_part_are_refused(tmp_path: Path) -> None:
    for k, folder in enumerate(("train", "Train", "test")):
        pictures(tmp_path / "d" / folder / "stop", 8, first=100 * k)
    with pytest.raises(DataError, match=r"Train, train in .* all stand for the part 'train'"):
        resolve(tmp_path / "d")
    shutil.rmtree(tmp_path / "d" / "Train")
    pictures(tmp_path / "d" / "test2" / "stop", 8, first=500)
    with pytest.raises(DataError, match=r"test, test2 in .* all stand for the part 'test'"):
        resolve(tmp_path / "d")


def test_one_folder_beside_train_is_divided_and_so_is_val_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert data_splits.LEAST_TO_DIVIDE == 150
    monkeypatch.setattr(data_splits, "LEAST_TO_DIVIDE", 15)
    for k, part in enumerate(("train", "validation")):
        pictures(tmp_path / "a" / part / "stop", 20, first=100 * k)
    found = resolve(tmp_path / "a")
    assert (len(found.fit), len(found.select), len(found.test)) == (20, 7, 13)
    # a checkpoint knows train by heart
    assert {i.path.parent.parent.name for i in found.select} == {"validation"}
    assert "by heart" not in caplog.text
    for k in range(5):  # copies of fitted ones are no pictures to select or test with
        shutil.copy(
            tmp_path / "a" / "train" / "stop" / f"{k}.png",
            tmp_path / "a" / "validation" / "stop" / f"copy{k}.png",
        )
    again = resolve(tmp_path / "a")
    assert again.select == found.select
    assert again.test == found.test
    assert "5 test pictures are also among the fitted ones" in caplog.text
    for k in range(6):
        (tmp_path / "a" / "validation" / "stop" / f"{100 + k}.png").unlink()
    found = resolve(tmp_path / "a")  # fourteen are too few to be divided
    assert len(found.test) == 14
    assert found.select
    assert {i.path.parent.parent.name for i in found.select} == {"train"}
    assert len(found.fit) + len(found.select) == 20
    assert "know them by heart" in caplog.text
    pictures(tmp_path / "b" / "val" / "stop", 20)
    found = resolve(tmp_path / "b")
    assert (len(found.fit), len(found.select), len(found.test)) == (10, 4, 6)
    assert found.fit[0].label == 0


def test_copies_count_once(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "dup", 20)
    for k in range(40):
        shutil.copy(folder / "3.png", folder / f"copy{k}.png")
    found = resolve(folder)
    assert len(found.fit) + len(found.select) + len(found.test) == 20


def test_the_seed_reaches_the_drawn_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_splits, "SIGNS_TRAIN", 20)
    monkeypatch.setattr(data_splits, "SIGNS_VAL", 20)
    first, other = (
        data_splits.resolve(
            DataOptions(test_images=20, seed=seed), "demo", signs.CLASSES, None, tmp_path / str(seed), Quiet()
        )
        for seed in (0, 1)
    )
    assert not {i.sha256 for i in first.test} & {i.sha256 for i in other.test}


def test_the_digest_of_what_is_fitted_does_not_know_the_test_set(signs_folder: Path) -> None:
    few, all_ = resolve(signs_folder, test_images=5), resolve(signs_folder)
    assert few.digest("fit", "select") == all_.digest("fit", "select")
    assert few.digest() != all_.digest()


def test_a_part_of_a_picture_is_as_large_as_asked_and_always_the_same() -> None:
    size, areas, shapes = (400, 300), [], []
    for k in range(200):
        left, upper, right, lower = box = tensors.part_of(size, 0.4, str(k))
        assert box == tensors.part_of(size, 0.4, str(k))
        assert 0 <= left < right <= 400
        assert 0 <= upper < lower <= 300
        areas.append((right - left) * (lower - upper) / (400 * 300))
        shapes.append((right - left) / (lower - upper) / (400 / 300))
    assert min(areas) > 0.38  # rounded to pixels, and cut off where it would be wider than the picture
    assert 0.6 < sum(areas) / 200 < 0.75
    assert max(areas) > 0.95
    assert 0.6 < min(shapes) < 0.85 < 1.2 < max(shapes) < 1.6
    assert tensors.part_of((1, 1), 0.4, "x") == (0, 0, 1, 1)


def test_what_is_learned_from_is_that_part_and_what_is_judged_the_whole(splits: data_splits.Splits) -> None:
    item = splits.fit[0]
    (whole, label), (part, _) = (tensors.batches_of([item], for_input(64), least)[0] for least in (1.0, 0.4))
    assert label == item.label
    image = open_image(item.path)
    assert torch.equal(whole, torch.from_numpy(to_tensor(image, for_input(64))))
    box = tensors.part_of(image.size, 0.4, f"0:{item.sha256}:0")
    assert torch.equal(part, torch.from_numpy(to_tensor(image.crop(box), for_input(64))))
    assert not torch.equal(part, whole)
    assert not torch.equal(tensors.batches_of([item], for_input(64), 0.4, seed=1)[0][0], part)


def test_what_weights_were_made_with_before_is_no_test_picture(splits: data_splits.Splits) -> None:
    leaked = splits.test[3]
    rest = splits.without([data_splits.short_hash(leaked.sha256)])
    assert rest.test == (*splits.test[:3], *splits.test[4:])
    assert (
        splits.without([data_splits.short_hash(i.source) for i in splits.test]).note
        == "no test pictures remain"
    )
    assert splits.without(()) == splits
    assert set(splits.fitted(["0123456789abcdef"])) == {"0123456789abcdef", *splits.fitted()}
