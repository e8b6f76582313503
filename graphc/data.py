"""Handwritten digits for the demo, the examples and the benchmarks.

`read_idx` reads MNIST's file format, `load_mnist` a directory with its 10,000 test images, `load_digits`
scikit-learn's 1,797 small ones. Images are float32 in [0, 1], one row of pixels each; labels are int32.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from graphc.errors import FeedError, ShapeError, UsageError

Array = np.ndarray[Any, Any]

# The third byte of an IDX file: the type of its elements, big-endian (yann.lecun.com/exdb/mnist).
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

MNIST_IMAGES = "t10k-images-idx3-ubyte.gz"
MNIST_LABELS = "t10k-labels-idx1-ubyte.gz"


class Split(NamedTuple):
    """Images (N, pixels) and labels (N,) to train on, and those held back."""

    images: Array
    labels: Array
    held_back_images: Array
    held_back_labels: Array


def read_idx(path: str | Path) -> Array:
    """The array in an IDX file, gzipped or not, in the machine's byte order.

    An IDX file is two zero bytes, a type code, the number of axes, one big-endian uint32 for each extent,
    and the elements. Raises FeedError, which names the file, if it is missing, is not IDX, is cut short,
    has bytes left over, or is a damaged gzip file.
    """
    path = Path(path)
    content = _read(path)
    if len(content) < 4:
        raise FeedError(f"{path}: {len(content)} bytes are too short for an IDX header")
    first, second, code, rank = content[:4]
    if first or second or code not in _IDX_DTYPES:
        raise FeedError(f"{path}: not an IDX file; it starts with {content[:4].hex(' ')}")
    start = 4 + 4 * rank
    if len(content) < start:
        raise FeedError(f"{path}: cut short in the header, which announces {rank} axes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", rank, 4))
    dtype = np.dtype(_IDX_DTYPES[code])
    count = int(np.prod(shape, dtype=object))
    if len(content) - start != count * dtype.itemsize:
        raise FeedError(
            f"{path}: shape {shape} of {dtype.newbyteorder('=')} needs {count * dtype.itemsize} bytes, "
            f"and there are {len(content) - start}"
        )
    array = np.frombuffer(content, dtype, count, start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _read(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is gzipped. Raises FeedError."""
    if not path.is_file():
        raise FeedError(f"{path}: no such file; an IDX file is expected there")
    raw = path.read_bytes()
    if raw[:2] != b"\x1f\x8b":
        if path.suffix == ".gz":
            raise FeedError(f"{path}: not a gzip file, in spite of its name")
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise FeedError(f"{path}: damaged gzip file ({error})") from None


def load_mnist(directory: str | Path) -> tuple[Array, Array]:
    """MNIST's 10,000 test images as (10000, 784) float32 in [0, 1], and their labels (10000,) int32.

    The directory holds the two files as published: t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz.
    Raises FeedError if one is missing, is damaged, or does not fit the other.
    """
    directory = Path(directory)
    for name in (MNIST_IMAGES, MNIST_LABELS):
        if not (directory / name).is_file():
            raise FeedError(
                f"{directory}: there is no {name}; expected are {MNIST_IMAGES} and {MNIST_LABELS}"
            )
    images, labels = read_idx(directory / MNIST_IMAGES), read_idx(directory / MNIST_LABELS)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise FeedError(f"{MNIST_IMAGES} holds {images.dtype} of shape {images.shape}, not images of bytes")
    if labels.shape != images.shape[:1]:
        raise FeedError(f"there are {len(images)} images, and labels of shape {labels.shape}")
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255), labels.astype(np.int32)


def load_digits() -> tuple[Array, Array]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels as (1797, 64) float32 in [0, 1], and labels (1797,) int32.

    Raises UsageError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise UsageError(
            "the small digits come with scikit-learn: pip install scikit-learn, or give a directory of MNIST"
        ) from None
    images, labels = load(return_X_y=True)
    return images.astype(np.float32) / np.float32(16), labels.astype(np.int32)


def load(directory: str | Path | None) -> tuple[Array, Array]:
    """MNIST from a directory, or scikit-learn's digits if there is none."""
    return load_digits() if directory is None else load_mnist(directory)


def split(images: Array, labels: Array, held_back: int, seed: int = 0) -> Split:
    """Shuffles and holds examples back, so that every class keeps its share among them.

    The shares are rounded by largest remainder. Raises ShapeError unless 0 < held_back < N.
    """
    if not 0 < held_back < len(labels):
        raise ShapeError(f"{held_back} of {len(labels)} examples cannot be held back")
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * held_back / len(labels)
    quotas = np.floor(exact).astype(int)
    quotas[np.argsort(quotas - exact, kind="stable")[: held_back - quotas.sum()]] += 1
    chosen = np.zeros(len(labels), bool)
    for label, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:quota]] = True
    kept, held = (rng.permutation(np.flatnonzero(mask)) for mask in (~chosen, chosen))
    return Split(images[kept], labels[kept], images[held], labels[held])


def one_hot(labels: Array, classes: int, dtype: Any = np.float32) -> Array:
    """Labels (N,) as rows (N, classes) with a single 1. Raises FeedError for a label out of range."""
    labels = np.asarray(labels)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise FeedError(f"label {labels[wrong[0]]} at position {wrong[0]} is not one of {classes} classes")
    rows = np.zeros((len(labels), classes), dtype)
    rows[np.arange(len(labels)), labels] = 1
    return rows


def shifted(images: Array, rng: np.random.Generator) -> Array:
    """Every image (N, side * side) moved by -1, 0 or 1 pixels along each axis, at random; 0 flows in.

    Raises ShapeError if the rows are not square images.
    """
    count, pixels = images.shape
    side = round(pixels**0.5)
    if side * side != pixels:
        raise ShapeError(f"rows of {pixels} pixels are not square images")
    padded = np.pad(images.reshape(count, side, side), ((0, 0), (1, 1), (1, 1)))
    moves = rng.integers(0, 9, count)
    result = np.empty_like(images).reshape(count, side, side)
    for move in range(9):
        down, right = divmod(move, 3)
        chosen = moves == move
        result[chosen] = padded[chosen, down : down + side, right : right + side]
    return result.reshape(count, pixels)
