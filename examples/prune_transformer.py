"""Prunes heads and hidden units of a small language model to half of its FLOPs; says what that costs and brings.

The model is a causal transformer that reads bytes. It learns the documentation strings of Python's own standard
library, which are on every machine that runs this; a tenth of the text, of other files, is held out. Then heads of
attention and units of the hidden layers get trainable gates, network and gates are trained together, and what is
closed is removed. For comparison the same surgery by the L1 norms of the weights, with as many steps of training
after it, and the dense model with these steps alone. The stream between the blocks stays as wide as it is: layer norms
take statistics over it.
"""

from __future__ import annotations

import ast
import copy
import math
import random
import sys
import sysconfig
import time
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import command
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from difflayers import gates

try:
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from pruning_methods import Schedule, parameters
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"prune_transformer.py: {error}; run: pip install 'difflayers[examples]'")


LEAST = 2000  # bytes of text, to train on and to hold out


class Attention(nn.Module):
    """Causal attention of several heads, queries, keys and values from one layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    """Attention and a hidden layer, norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Bytes [batch, length] -> logits of the next bytes [batch, length, 256]."""

    def __init__(self, length: int, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.zeros(length, width))
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embedding(text) + self.places[: text.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class Text(NamedTuple):
    """Bytes to learn from and bytes held out, uint8."""

    training: Tensor
    held_out: Tensor


def docstrings(path: Path) -> list[str]:
    """Those of a Python file's module, classes and functions; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's escape sequences
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


def load_text(folder: Path | None, size: int) -> Text:
    """Up to `size` bytes of the documentation strings of a folder's Python files (default: the standard library's)."""
    place = folder or Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in place.rglob("*.py") if not {"site-packages", "test", "tests"} & set(path.parts))
    random.Random(0).shuffle(files)
    training, held_out = bytearray(), bytearray()
    for path in files:
        if len(training) + len(held_out) >= size:
            break
        text = "\n\n".join(docstrings(path)).encode(errors="replace") + b"\n\n"
        if len(text) > 2:  # whole files: those held out are a tenth of the text
            (held_out if 9 * len(held_out) < len(training) else training).extend(text)
    if min(len(training), len(held_out)) < LEAST:
        raise OSError(f"{place} must have Python files with at least {LEAST} bytes of documentation strings to train "
                      f"on and as many to hold out, got {len(training)} and {len(held_out)}")  # fmt: skip
    return Text(*(torch.frombuffer(part, dtype=torch.uint8) for part in (training, held_out)))


class Pieces:
    """Batches of pieces of text from random places."""

    def __init__(self, text: Tensor, batch: int, length: int, steps: int, seed: int) -> None:
        self.text, self.batch, self.length, self.steps = text, batch, length, steps
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        for _ in range(self.steps):
            starts = torch.randint(len(self.text) - self.length - 1, (self.batch,), generator=self.generator)
            yield self.text[starts[:, None] + torch.arange(self.length + 1)].long()


def loss_of(model: nn.Module, pieces: Tensor) -> Tensor:
    """Cross-entropy of every next byte."""
    return F.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


@torch.no_grad()
def bits(model: nn.Module, text: Tensor, length: int, pieces: int) -> float:
    """Bits per byte on pieces of text that are spread evenly, at most as many as there are without overlap."""
    pieces = max(1, min(pieces, len(text) // length))
    model.eval()
    starts = torch.linspace(0, len(text) - length - 1, pieces).long()
    batches = text[starts[:, None] + torch.arange(length + 1)].long().split(64)
    total = sum(float(loss_of(model, batch)) * len(batch) for batch in batches)
    model.train()
    return total / len(starts) / math.log(2)


class Curve:
    """Bits per byte on held-out text, taken every so often while a model is trained."""

    def __init__(self, text: Text, options: Namespace, name: str, steps: int, first: int = 0) -> None:
        self.text, self.options, self.first, self.done = text, options, first, 0
        self.every = max(1, steps // 12)
        self.points: list[tuple[int, float]] = []
        self.bar = tqdm(total=steps, desc=f"{name:16}", unit="step", dynamic_ncols=True, disable=None, leave=False)

    def measure(self, model: nn.Module) -> float:
        """Now."""
        value = bits(model, self.text.held_out, self.options.length, 64)
        self.points.append((self.first + self.done, value))
        return value

    def step(self, model: nn.Module) -> None:
        """After a step of training."""
        self.done += 1
        self.bar.update()
        if self.done % self.every == 0:
            self.bar.set_postfix(bits=f"{self.measure(model):.3f}", refresh=False)


def train(model: nn.Module, pieces: Pieces, rate: float, curve: Curve) -> None:
    """Plain training; Ctrl-C ends it early."""
    schedule = Schedule(model, rate, len(pieces))
    model.train()
    try:
        for batch in pieces:
            loss = loss_of(model, batch)
            schedule.optimiser.zero_grad()
            loss.backward()
            schedule.optimiser.step()
            schedule.step()
            curve.step(model)
    except KeyboardInterrupt:
        print("Interrupted: goes on with what was learnt.", file=sys.stderr)
    finally:
        curve.bar.close()


class Row(NamedTuple):
    """A model's figures."""

    bits: float
    flops: float
    parameters: int
    milliseconds: float


def milliseconds(models: dict[str, nn.Module], batch: Tensor) -> dict[str, float]:
    """The fastest of some forwards, the models taking turns."""
    best = dict.fromkeys(models, math.inf)
    with torch.no_grad():
        for i in range(12):
            for name, model in models.items():
                model.eval()
                start = time.perf_counter()
                model(batch)
                if i > 1:
                    best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return best


def kept(gated: gates.Gated) -> dict[str, tuple[int, int]]:
    """Units kept and units of each group."""
    return {name: (int(mask.sum()), len(mask)) for name, mask in gated.opened().items()}


def draw(curves: dict[str, Curve], groups: dict[str, dict[str, tuple[int, int]]], path: Path) -> None:
    """Held-out loss against steps, and what each method keeps of every group."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {
        "dense": "#57606a",
        "trainable gates": "#0969da",
        "L1 magnitude": "#bc4c00",
        "dense, trained on": "#8c959f",
    }
    for name, curve in curves.items():
        if curve.points:
            left.plot(*zip(*curve.points, strict=True), color=colours[name], label=name)
    left.set(xlabel="step", ylabel="bits per byte, held-out text")
    left.legend()
    for i, (name, shares) in enumerate(groups.items()):
        places = [place + 0.4 * i for place in range(len(shares))]
        right.barh(places, [a / b for a, b in shares.values()], 0.38, color=colours[name], label=name)
    names = next(iter(groups.values()))
    right.set_yticks([place + 0.2 * (len(groups) - 1) for place in range(len(names))], list(names))
    right.invert_yaxis()
    right.set(xlabel="share that is kept", xlim=(0, 1))
    right.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__,
        __doc__,
        seed="of the weights and the batches",
        quick={"steps": 30, "finetune": 20, "blocks": 2, "width": 48, "heads": 4, "bytes": 100_000},
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of Python files to use in place of the standard library")
    add("--target", type=float, default=0.5, help="share of the FLOPs that is left")
    add("--steps", type=int, default=500, help="of the dense model's training")
    add("--finetune", type=int, default=300, help="steps with gates; and after pruning by magnitude")
    add("--batch", type=int, default=16, help="pieces of text in a step")
    add("--length", type=int, default=64, help="bytes of a piece")
    add("--width", type=int, default=96, help="of the stream")
    add("--heads", type=int, default=6, help="of a block")
    add("--blocks", type=int, default=3, help="how many")
    add("--lr", type=float, default=3e-3, help="learning rate of Adam; a third of it after the dense training")
    add("--bytes", type=int, default=1_000_000, help="of text, at most")
    options = parser.options(argv)
    whole = (options.steps, options.finetune, options.batch, options.width, options.heads, options.blocks)
    if min(whole) < 1 or options.width % options.heads or not 0 < options.lr < math.inf:
        parser.error("--steps, --finetune, --batch, --width, --heads, --blocks and --lr must be positive, and --width "
                     "a multiple of --heads")  # fmt: skip
    if not 2 <= options.length <= 1000:
        parser.error("--length must be in [2, 1000]")
    if not 0 < options.target <= 1:
        parser.error("--target must be in (0, 1]")
    if options.bytes < 50_000:
        parser.error("--bytes must be at least 50000")
    return options


def run(options: Namespace) -> Path:
    """Trains, prunes, prints the table, draws the picture."""
    text = load_text(options.data, options.bytes)
    torch.manual_seed(options.seed)
    dense = Transformer(options.length, options.width, options.heads, options.blocks)
    example = torch.zeros(1, options.length, dtype=torch.long)
    gated = gates.attach(copy.deepcopy(dense), example)
    gates.project(gated, options.target, apply=False)  # refuses what cannot be had before anything is trained
    print(f"{len(text.training) / 1e6:.2f} MB of documentation strings to learn from, {len(text.held_out) / 1e6:.2f} "
          f"MB held out;\n{options.blocks} blocks of {options.heads} heads and {4 * options.width} hidden units. "
          f"Ctrl-C ends a training early.\n", flush=True)  # fmt: skip

    def pieces(steps: int, seed: int) -> Pieces:
        return Pieces(text.training, options.batch, options.length, steps, seed)

    curves = {"dense": Curve(text, options, "dense", options.steps)}
    train(dense, pieces(options.steps, options.seed), options.lr, curves["dense"])

    models: dict[str, nn.Module] = {"dense": dense}
    costs = {"dense": gated.full_cost()}
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    rate, data = options.lr / 3, pieces(options.finetune, options.seed + 1)
    gated.model.load_state_dict(dense.state_dict())
    curve = curves["trainable gates"] = Curve(text, options, "trainable gates", options.finetune, options.steps)
    schedule = Schedule(gated.model, rate, options.finetune)

    def after_step(_: gates.FitRecord) -> None:
        schedule.step()
        curve.step(gated)

    fitted = gates.fit(
        gated, loss_of, data, target=options.target, steps=options.finetune, optimizer=schedule.optimiser,
        callback=after_step, progress=False,
    )  # fmt: skip
    curve.bar.close()
    models["trainable gates"] = gates.prune(gated)
    costs["trainable gates"] = float(gated.cost().detach())
    groups["trainable gates"] = kept(gated)
    shown = gates.report(gated, models["trainable gates"], measure=False)

    by_norm = gates.attach(copy.deepcopy(dense), example)
    gates.project(by_norm, options.target, scores=gates.importance_by_magnitude(by_norm))
    models["L1 magnitude"] = small = gates.prune(by_norm)
    costs["L1 magnitude"], groups["L1 magnitude"] = float(by_norm.cost().detach()), kept(by_norm)
    curves["L1 magnitude"] = Curve(text, options, "L1 magnitude", options.finetune, options.steps)
    data = pieces(options.finetune, options.seed + 1)  # the same batches again
    train(small, data, rate, curves["L1 magnitude"])

    # what the further training alone does
    models["dense, trained on"] = on = copy.deepcopy(dense)
    costs["dense, trained on"] = costs["dense"]
    curves["dense, trained on"] = Curve(text, options, "dense, on", options.finetune, options.steps)
    train(on, pieces(options.finetune, options.seed + 1), rate, curves["dense, trained on"])

    times = milliseconds(models, next(iter(data))[:, :-1])
    print(f"{'':20}{'bits per byte':>15}{'MFLOPs':>9}{'share':>8}{'parameters':>12}{'ms a batch':>12}{'speed':>8}")
    for name, model in models.items():
        value = bits(model, text.held_out, options.length, 1000)
        print(f"{name:20}{value:>15.3f}{costs[name] / 1e6:>9.1f}{costs[name] / costs['dense']:>8.4f}"
              f"{parameters(model):>12}{times[name]:>12.2f}{times['dense'] / times[name]:>7.2f}x")  # fmt: skip
    print(f"\nWhat the gates keep ({fitted.status}):\n{shown}\n")
    path = options.out / "prune_transformer.png"
    draw(curves, groups, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options, ValueError)


if __name__ == "__main__":
    sys.exit(main())
