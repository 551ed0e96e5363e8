"""Real handwritten digits for the examples: scikit-learn's, or MNIST from a folder of idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor


class Images(NamedTuple):
    """Grey images in [0, 1] and the numbers they show: of single digits, or of sets of numbers."""

    pixels: Tensor  # [digits, height, width], or of sets of numbers [sets, n, height, places * width]
    numbers: Tensor  # int64, [digits] or [sets, n]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array of bytes in an idx file, plain or gzipped: magic number, sizes (big-endian), bytes."""
    try:
        content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(f"{path} cannot be read: {error}") from None
    header, magic = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])  # 8 = unsigned bytes
    if content[:4] != magic:
        raise OSError(f"{path} is not an idx file: magic number '{content[:4].hex()}' in place of '{magic.hex()}'")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise OSError(f"{path} has {len(content)} bytes, not the {header + math.prod(shape)} of its sizes {shape}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def load_digits(folder: Path | None) -> Images:
    """MNIST from a folder (its train files if there are any, else t10k), or scikit-learn's 8x8 digits."""
    if folder is None:
        digits = datasets.load_digits()
        return Images(torch.from_numpy(digits.images).float() / 16, torch.from_numpy(digits.target).long())

    def read(name: str, dimensions: int) -> np.ndarray:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return read_idx(path, dimensions)
        raise FileNotFoundError(f"{folder / name} is missing, and so is {name}.gz")

    part = "train" if any(folder.glob("train-images-idx3-ubyte*")) else "t10k"
    images, labels = read(f"{part}-images-idx3-ubyte", 3), read(f"{part}-labels-idx1-ubyte", 1)
    if len(images) != len(labels) or len(images) < 100 or min(images.shape) < 8 or labels.max() > 9:
        raise OSError(f"{folder} must hold at least 100 images of at least 8x8 pixels and as many labels of 0 to 9, "
                      f"got {len(images)} images of {images.shape[1:]} and {len(labels)} labels")  # fmt: skip
    return Images(torch.from_numpy(images / np.float32(255)), torch.from_numpy(labels.astype(np.int64)))


def split(digits: Images, seed: int) -> list[Images]:
    """Train, validation and test digits, 8 : 1 : 1; disjoint, so that held-out numbers consist of unseen images."""
    order = torch.randperm(len(digits.numbers), generator=torch.Generator().manual_seed(seed))
    sizes = (len(order) * 8 // 10, len(order) * 9 // 10)
    return [Images(digits.pixels[part], digits.numbers[part]) for part in order.tensor_split(sizes)]
