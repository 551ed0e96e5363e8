"""Trains variational autoencoders with categorical latents on handwritten digits, one for each gradient estimator.

The code of an image is L choices of one of C classes (8 of 4 by default). Sampling them is what gradients have to pass,
and how they do is all that differs between the rows of the table: the architecture, the initial weights, the order of
the images and the optimiser are the same. The figure of merit is the negative evidence lower bound (-ELBO) in nats,
reconstruction plus KL divergence from the uniform prior; lower is better. The setting is that of Liu et al.,
arXiv 2304.08612, section 6.2, on smaller images. All seeds of an estimator are trained at once, as a batch of networks.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import command
import torch
from torch import Tensor, nn

import difflayers as dl

try:
    from digit_images import load_digits, split
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"categorical_vae.py: {error}; run: pip install 'difflayers[examples]'")

# Temperatures as tuned by the authors of ReinMax and of the comparison in arXiv 2603.08257, for 8 x 4 latents
ESTIMATORS: dict[str, Callable[[], nn.Module | dl.estimators.RLOO]] = {
    "ReinMax": lambda: dl.ReinMax(1.0),
    "ReinMax 1.3": lambda: dl.ReinMax(1.3),
    "Gumbel-Softmax 0.5": lambda: dl.GumbelSoftmax(0.5, hard=True),
    "Gumbel-Softmax annealed": lambda: dl.GumbelSoftmax(dl.schedules.Exponential(1.0, 0.3, steps=1000), hard=True),
    "Gumbel-Rao 0.5": lambda: dl.GumbelRao(0.5, samples=10),
    "Gapped straight-through": lambda: dl.GappedStraightThrough(1.0),
    "Straight-through 1.3": lambda: dl.StraightThrough(1.3),
    "RLOO, 2 samples": lambda: dl.estimators.RLOO(samples=2),
}
COLOURS = ("#cf222e", "#f0883e", "#0969da", "#54aeff", "#1a7f37", "#8250df", "#6e7781", "#24292f")


class Layer(nn.Module):
    """One linear layer of several networks: [seeds, batch, in] -> [seeds, batch, out]."""

    def __init__(self, seeds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(seeds, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(seeds, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


def perceptron(seeds: int, *sizes: int) -> nn.Sequential:
    """Linear layers with rectifiers between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Layer(seeds, inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """As many autoencoders as there are seeds, in one."""

    def __init__(self, seeds: int, pixels: int, latents: int, classes: int) -> None:
        super().__init__()
        wide, narrow = (128, 64) if pixels < 500 else (256, 128)
        self.shape = (latents, classes)
        self.encoder = perceptron(seeds, pixels, wide, narrow, latents * classes)
        self.decoder = perceptron(seeds, latents * classes, narrow, wide, pixels)

    def logits(self, images: Tensor) -> Tensor:
        """[seeds, batch, pixels] -> [seeds, batch, latents, classes]."""
        return self.encoder(images).unflatten(-1, self.shape)

    def reconstruction_loss(self, codes: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy of the grey values in nats, [seeds, batch]."""
        decoded = self.decoder(codes.flatten(-2))
        return nn.functional.binary_cross_entropy_with_logits(decoded, images, reduction="none").sum(-1)


def divergence(logits: Tensor) -> Tensor:
    """KL divergence of the code's distribution from the uniform one, [seeds, batch]."""
    logarithms = logits.log_softmax(-1)
    return (logarithms.exp() * (logarithms + math.log(logits.shape[-1]))).sum((-1, -2))


class Result(NamedTuple):
    """What a training leaves: -ELBO of each epoch [epochs, seeds], of the held-out images [seeds], and the networks."""

    curve: Tensor
    held_out: Tensor
    seconds: float
    networks: Autoencoder


def train(make: Callable[[], nn.Module | dl.estimators.RLOO], images: Tensor, held_out: Tensor, options: Namespace,
          name: str) -> Result | None:  # fmt: skip
    """Trains the networks of all seeds; None after Ctrl-C."""
    torch.manual_seed(options.seed)
    networks = Autoencoder(options.seeds, images.shape[1], options.latents, options.classes)
    optimiser = torch.optim.Adam(networks.parameters(), options.lr)
    estimator, shuffle = make(), torch.Generator().manual_seed(options.seed)
    schedule = estimator.given_temperature if isinstance(estimator, dl.GumbelSoftmax) else None
    curve, started, count = [], time.perf_counter(), len(images) // options.batch
    for _ in tqdm(range(options.epochs), desc=f"{name:24}", dynamic_ncols=True, disable=None, leave=False):
        order = torch.rand(options.seeds, len(images), generator=shuffle).argsort(1)
        total = torch.zeros(options.seeds)
        for step in range(count):
            batch = images[order[:, step * options.batch : (step + 1) * options.batch]]
            logits = networks.logits(batch)
            # the expected loss by the estimator: its value is that of a sample, its gradient the estimator's
            expected = dl.expectation(
                lambda codes, batch=batch: networks.reconstruction_loss(codes, batch), logits, estimator=estimator
            )
            loss = (expected + divergence(logits)).mean(1)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
            total += loss.detach() / count
            if isinstance(schedule, dl.schedules.Schedule):
                schedule.step()
        curve.append(total)
    seconds = time.perf_counter() - started
    return Result(torch.stack(curve), evaluate(networks, held_out), seconds, networks)


@torch.no_grad()
def evaluate(networks: Autoencoder, images: Tensor, samples: int = 20) -> Tensor:
    """-ELBO of each seed's network, averaged over some codes for every image."""
    seeds = next(networks.parameters()).shape[0]
    images = images.expand(seeds, -1, -1)
    logits = networks.logits(images)
    losses = [networks.reconstruction_loss(dl.straight_through(logits), images).mean(1) for _ in range(samples)]
    return torch.stack(losses).mean(0) + divergence(logits).mean(1)


def draw(results: dict[str, Result], images: Tensor, shape: tuple[int, int], path: Path) -> None:
    """The -ELBO curves with a band of one standard deviation over the seeds, and some reconstructions."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[7, 4])
    axes = left.subplots()
    for (name, result), colour in zip(results.items(), COLOURS, strict=False):
        mean, deviation = result.curve.mean(1), result.curve.std(1) if result.curve.shape[1] > 1 else 0
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, color=colour, label=name, linewidth=1.5)
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    floor = min(float(result.curve.mean(1).min()) for result in results.values())
    ceiling = max(float(result.curve.mean(1)[len(result.curve) // 4]) for result in results.values())
    axes.set(xlabel="epoch", ylabel="-ELBO of the training images (nats)", ylim=(floor - 0.5, ceiling + 1))
    axes.legend(frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    best = next(iter(results.values())).networks
    shown = images[:8]
    with torch.no_grad():
        codes = nn.functional.one_hot(best.logits(shown.expand(best.encoder[0].weight.shape[0], -1, -1)).argmax(-1),
                                      best.shape[1]).float()  # fmt: skip
        decoded = best.decoder(codes.flatten(-2))[0].sigmoid()
    right.suptitle(f"Unseen digits, and what {next(iter(results))} decodes", fontsize=10)
    for cells, row in zip(right.subplots(2 * 2, 4), (shown[:4], decoded[:4], shown[4:], decoded[4:]), strict=True):
        for cell, image in zip(cells, row, strict=False):
            cell.imshow(image.view(shape), cmap="gray_r", vmin=0, vmax=1)
            cell.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__, __doc__, seed="of the split, the initial weights and the samples", quick={"epochs": 3, "seeds": 2}
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of MNIST idx files to use in place of scikit-learn's digits")
    add("--estimators", nargs="*", choices=list(ESTIMATORS), metavar="NAME", default=list(ESTIMATORS), help="which")
    add("--latents", type=int, default=8, help="choices in a code")
    add("--classes", type=int, default=4, help="classes of a choice")
    add("--epochs", type=int, default=100, help="passes over the training images")
    add("--batch", type=int, default=100, help="images in a step")
    add("--lr", type=float, default=3e-3, help="learning rate of Adam")
    add("--seeds", type=int, default=5, help="networks of each estimator")
    options = parser.options(argv)
    whole = (options.epochs, options.batch, options.seeds, options.latents)
    if min(whole) < 1 or options.classes < 2 or not 0 < options.lr < math.inf or not options.estimators:
        parser.error("--classes must be at least 2, the other numbers positive, and --estimators not empty")
    return options


def run(options: Namespace) -> Path:
    """Trains, prints the table, draws the picture."""
    digits = load_digits(options.data)
    train_part, _, test_part = (part.pixels.flatten(1) for part in split(digits, options.seed))
    if options.batch > len(train_part):
        raise OSError(f"--batch must be at most the number of training images, {len(train_part)}, got {options.batch}")
    print(f"{options.latents} x {options.classes} latents, {options.seeds} seeds, {options.epochs} epochs of "
          f"{len(train_part)} images; Ctrl-C ends the trainings early.\n")  # fmt: skip
    print(f"{'':26}{'train -ELBO':>16}{'held-out -ELBO':>18}{'seconds':>10}", flush=True)
    results: dict[str, Result] = {}
    with suppress(KeyboardInterrupt):
        for name in options.estimators:
            result = train(ESTIMATORS[name], train_part, test_part, options, name)
            if result is None:
                break
            results[name] = result
            columns = [
                f"{x.mean():.2f} ± {x.std() if len(x) > 1 else 0:.2f}" for x in (result.curve[-1], result.held_out)
            ]
            print(f"{name:26}{columns[0]:>16}{columns[1]:>18}{result.seconds:>10.1f}", flush=True)
    if not results:
        raise KeyboardInterrupt
    print("\nMean ± standard deviation over the seeds, of the last epoch; lower is better.")
    draw(results, test_part, tuple(digits.pixels.shape[1:]), options.out / "categorical_vae.png")
    return options.out / "categorical_vae.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
