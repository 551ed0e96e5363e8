"""Real images of ten classes for the pruning example: scikit-learn's digits, MNIST, or CIFAR-10's binary files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from digit_images import Images, load_digits
from torch import Tensor

__all__ = ["Batches", "Images", "load_images", "parts"]

BYTES = 1 + 3 * 32 * 32  # of an image of CIFAR-10: its class, then its red, green and blue planes


def read_cifar(path: Path) -> Images:
    """The images of one binary batch, [images, 3, 32, 32] in [0, 1]. (The Python version is pickled: not read here.)"""
    content = np.fromfile(path, np.uint8)
    if content.size == 0 or content.size % BYTES:
        raise OSError(f"{path} has {content.size} bytes, not a multiple of the {BYTES} of an image of CIFAR-10")
    rows = content.reshape(-1, BYTES)
    if rows[:, 0].max() > 9:
        raise OSError(f"{path} must have classes 0 to 9, got {rows[:, 0].max()}; is it CIFAR-10's binary version?")
    pixels = rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
    return Images(torch.from_numpy(pixels), torch.from_numpy(rows[:, 0].astype(np.int64)))


def load_images(folder: Path | None) -> Images:
    """All images of a folder of CIFAR-10's binary or MNIST's idx files, or the digits; pixels [n, c, h, w]."""
    if folder is not None and not any(folder.glob("*images-idx3-ubyte*")):
        places = [folder, folder / "cifar-10-batches-bin"]
        files = [path for place in places for path in sorted(place.glob("*_batch*.bin"))]
        if not files:
            raise FileNotFoundError(
                f"{folder} has neither data_batch_1.bin, ... of CIFAR-10's binary version (cifar-10-batches-bin) "
                f"nor train-images-idx3-ubyte of MNIST"
            )
        return Images(*map(torch.cat, zip(*map(read_cifar, files), strict=True)))
    digits = load_digits(folder)
    return Images(digits.pixels[:, None], digits.numbers)


def parts(images: Images, seed: int, share: float = 0.8) -> tuple[Images, Images]:
    """A share of the images to train on, the others to test on; with the mean 0 and the deviation 1 of the former."""
    order = torch.randperm(len(images.numbers), generator=torch.Generator().manual_seed(seed))
    chosen = order.tensor_split((round(share * len(order)),))
    training, test = (Images(images.pixels[part], images.numbers[part]) for part in chosen)
    mean, deviation = training.pixels.mean((0, 2, 3), True), training.pixels.std((0, 2, 3), keepdim=True)
    return (
        Images((training.pixels - mean) / deviation, training.numbers),
        Images((test.pixels - mean) / deviation, test.numbers),
    )


class Batches:
    """Shuffled batches, in another order each time; colour images are mirrored and shifted at random."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        self.images, self.size = images, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return max(1, len(self.images.numbers) // self.size)  # the last, smaller batch is left out: batch norm

    def __iter__(self):
        order = torch.randperm(len(self.images.numbers), generator=self.generator)
        for chosen in order[: len(self) * self.size].split(self.size):
            yield self.changed(self.images.pixels[chosen]), self.images.numbers[chosen]

    def changed(self, pixels: Tensor) -> Tensor:
        """Half of the colour images mirrored, the batch shifted by up to four pixels."""
        if pixels.shape[1] != 3:
            return pixels
        mirrored = torch.rand(len(pixels), generator=self.generator) < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        down, right = torch.randint(-4, 5, (2,), generator=self.generator).tolist()
        padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
        height, width = pixels.shape[-2:]
        return padded[..., 4 + down : 4 + down + height, 4 + right : 4 + right + width]
