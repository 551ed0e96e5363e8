"""Draws the pictures of the documentation into docs/images: `python docs/pictures/draw.py [name ...]`, one minute.

The same versions of torch and matplotlib draw the same files. `make pictures` draws all of them.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import choosing
import fitting
import gates
import optimising
import sorting

IMAGES = Path(__file__).parents[1] / "images"
PICTURES = {
    "swaps": sorting.swaps,
    "permutations": sorting.permutations,
    "bias_variance": choosing.bias_variance,
    "top_k": choosing.top_k,
    "blackbox": optimising.blackbox,
    "surco": optimising.surco,
    "ransac": fitting.ransac,
    "pruning": gates.pruning,
}
LOOK = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "savefig.bbox": "tight",
}
LIMIT = 100_000  # bytes; the pictures are committed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="all where none is given")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder they go to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # sums in one order
    plt.rcParams.update(LOOK)
    for name in arguments.names or PICTURES:
        torch.manual_seed(0)
        start = time.perf_counter()
        figure = PICTURES[name]()
        file = arguments.out / f"{name}.png"
        drawn = io.BytesIO()
        figure.savefig(drawn)
        plt.close(figure)
        Image.open(drawn).convert("RGB").quantize(128).save(file, optimize=True)  # a third of the size
        size = file.stat().st_size
        print(f"{file}: {size / 1000:.0f} kB, {time.perf_counter() - start:.1f} s")
        if size > LIMIT:
            raise SystemExit(f"{file} is larger than {LIMIT / 1000:.0f} kB")


if __name__ == "__main__":
    main()
