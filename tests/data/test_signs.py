import numpy as np
import pytest

from vgg_export.data import signs


def test_the_same_seed_gives_the_same_picture() -> None:
    first, again, other = (np.asarray(signs.draw("stop", seed, 96)) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


@pytest.mark.parametrize("name", signs.CLASSES)
@pytest.mark.parametrize("size_px", [32, 65, 224])
def test_every_sign_is_drawn_at_every_size(name: str, size_px: int) -> None:
    image = signs.draw(name, 1, size_px)
    assert (image.size, image.mode) == ((size_px, size_px), "RGB")
    assert np.asarray(image).std() > 3


def test_the_faces_differ() -> None:
    faces = [np.asarray(signs._template(name, 64), int) for name in signs.CLASSES]
    for a in range(len(faces)):
        for b in range(a):
            assert np.abs(faces[a] - faces[b]).mean() > 1, (signs.CLASSES[a], signs.CLASSES[b])


def test_left_and_right_are_mirrored() -> None:
    for left, right in (("keep left", "keep right"), ("bend left", "bend right")):
        a, b = (np.asarray(signs._template(name, 128), int) for name in (left, right))
        assert np.abs(a[:, ::-1] - b).mean() < 3


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown road sign 'moose'"):
        signs.draw("moose", 0)
    with pytest.raises(ValueError, match="at least 32 px, found 8"):
        signs.draw("stop", 0, 8)
