"""Reading and preparing digits: what is read, and the errors for files that are wrong."""

from __future__ import annotations

import builtins
import gzip
import struct

import numpy as np
import pytest

import graphc as gx
from graphc import data


def idx(code: int, *shape: int, payload: bytes) -> bytes:
    """An IDX file's bytes."""
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + payload


def mnist(directory, count=3, labels=None):
    """A directory with `count` images of 2 x 2 pixels."""
    pixels = bytes(range(4 * count))
    (directory / data.MNIST_IMAGES).write_bytes(gzip.compress(idx(8, count, 2, 2, payload=pixels)))
    (directory / data.MNIST_LABELS).write_bytes(
        gzip.compress(idx(8, labels or count, payload=bytes(labels or count)))
    )
    return directory


@pytest.mark.parametrize(
    ("code", "format", "dtype"),
    [(8, "B", "u1"), (9, "b", "i1"), (11, "h", "i2"), (12, "i", "i4"), (13, "f", "f4"), (14, "d", "f8")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_every_element_type_in_native_order(tmp_path, code, format, dtype, packed):
    values = [1, 2, 3, 4, 5, 100]
    content = idx(code, 2, 3, payload=struct.pack(f">6{format}", *values))
    path = tmp_path / "values"
    path.write_bytes(gzip.compress(content) if packed else content)
    array = data.read_idx(path)
    assert array.dtype == np.dtype(dtype) and array.dtype.isnative
    np.testing.assert_array_equal(array, np.reshape(values, (2, 3)))


def test_an_empty_file_of_images_is_legal(tmp_path):
    (tmp_path / "none").write_bytes(idx(8, 0, 28, 28, payload=b""))
    assert data.read_idx(tmp_path / "none").shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes are too short"),
        (b"\x89PNG\r\n", "not an IDX file; it starts with 89 50 4e 47"),
        (idx(7, 2, payload=b"ab"), "not an IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "cut short in the header, which announces 3 axes"),
        (idx(8, 2, 2, payload=b"abc"), r"shape \(2, 2\) of uint8 needs 4 bytes, and there are 3"),
        (idx(8, 2, payload=b"abc"), "needs 2 bytes, and there are 3"),
        (idx(8, 2**31, 2**31, 2**31, payload=b""), "needs 9903520314283042199192993792 bytes"),
        (gzip.compress(idx(8, 4, payload=b"abcd"))[:-6], "damaged gzip file"),
        (
            gzip.compress(idx(8, 4, payload=b"abcd"))[:12] + b"\xff\xff\xff\xff\xff\xff\xff",
            "damaged gzip file",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, message):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(gx.FeedError, match=message) as caught:
        data.read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(gx.FeedError, match="no such file; an IDX file is expected"):
        data.read_idx(tmp_path / "nothing")
    with pytest.raises(
        gx.FeedError, match=f"no {data.MNIST_IMAGES}; expected are .* and {data.MNIST_LABELS}"
    ):
        data.load_mnist(tmp_path)


def test_a_plain_file_named_gz_is_refused(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(idx(8, 1, payload=b"a"))
    with pytest.raises(gx.FeedError, match="not a gzip file, in spite of its name"):
        data.read_idx(path)


def test_mnist_becomes_rows_between_0_and_1(tmp_path):
    images, labels = data.load_mnist(mnist(tmp_path))
    assert images.shape == (3, 4) and images.dtype == np.float32
    assert labels.shape == (3,) and labels.dtype == np.int32
    np.testing.assert_array_equal(images * 255, np.arange(12, dtype=np.float32).reshape(3, 4))


def test_labels_must_fit_the_images(tmp_path):
    with pytest.raises(gx.FeedError, match=r"3 images, and labels of shape \(5,\)"):
        data.load_mnist(mnist(tmp_path, labels=5))


def test_the_small_digits():
    pytest.importorskip("sklearn")
    images, labels = data.load(None)
    assert images.shape == (1797, 64) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1
    assert labels.dtype == np.int32 and set(labels) == set(range(10))


def test_without_scikit_learn_the_error_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def refusing(name, *rest, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(gx.UsageError, match="pip install scikit-learn"):
        data.load_digits()


def test_the_split_is_stratified_seeded_and_complete():
    labels = np.repeat(np.arange(4), [100, 50, 31, 19])
    images = np.arange(200.0).reshape(200, 1)
    first = data.split(images, labels, 40, seed=3)
    assert [int((first.held_back_labels == k).sum()) for k in range(4)] == [20, 10, 6, 4]
    together = np.sort(np.concatenate([first.images, first.held_back_images]), axis=0)
    np.testing.assert_array_equal(together, images)
    np.testing.assert_array_equal(labels[first.images[:, 0].astype(int)], first.labels)
    again, other = data.split(images, labels, 40, seed=3), data.split(images, labels, 40, seed=4)
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    for count in (0, 200, -1):
        with pytest.raises(gx.ShapeError, match="cannot be held back"):
            data.split(images, labels, count)


def test_one_hot_rows():
    np.testing.assert_array_equal(data.one_hot(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    assert data.one_hot(np.array([], int), 3).shape == (0, 3)
    for wrong in (-1, 3):
        with pytest.raises(gx.FeedError, match=f"label {wrong} at position 1"):
            data.one_hot(np.array([0, wrong]), 3)


def test_shifts_move_every_image_by_at_most_a_pixel():
    images = np.zeros((200, 25), np.float32)
    images[:, 12] = 1
    moved = data.shifted(images, np.random.default_rng(0)).reshape(200, 5, 5)
    np.testing.assert_array_equal(moved.sum((1, 2)), 1)
    places = {(int(r), int(c)) for _, r, c in np.argwhere(moved)}
    assert places == {(r, c) for r in (1, 2, 3) for c in (1, 2, 3)}


def test_shifts_let_zeros_in_at_the_edge():
    moved = data.shifted(np.ones((300, 9), np.float32), np.random.default_rng(0))
    assert {int(s) for s in moved.sum(1)} == {9, 6, 4}
    with pytest.raises(gx.ShapeError, match="not square"):
        data.shifted(np.ones((1, 10)), np.random.default_rng(0))
