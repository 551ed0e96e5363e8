"""Learns which experts to ask about an image: top-k selection over an ensemble of specialists, trained end to end.

Each of ten small classifiers has seen only three of the ten digits, so on its own it is wrong most of the time, and
averaging all ten (soft voting) lets the ignorant outvote the informed. A selector, itself a small network, scores the
experts for each image; a differentiable top-k turns the scores into a choice of k of them, whose averaged prediction
is scored by cross-entropy. The experts are frozen: the only way for the loss to fall is through the gradient of the
choice. At test time the choice is hard, so that only k experts have to be run. The idea is that of Kotary et al.,
"Differentiable Model Selection for Ensemble Learning", arXiv 2211.00251.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import command
import torch
from torch import Tensor, nn

import difflayers as dl
from difflayers import subsets

try:
    from digit_images import Images, load_digits, split
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"select_experts.py: {error}; run: pip install 'difflayers[examples]'")

METHODS: dict[str, Callable[[int], nn.Module]] = {
    "perturbed top-k": lambda k: subsets.PerturbedTopK(k, 0.5, samples=20),
    "SIMPLE": lambda k: subsets.Simple(k),
    "relaxed Gumbel top-k": lambda k: subsets.GumbelTopK(k, 0.5),
    "sorting network": lambda k: subsets.NetworkTopK(k, 0.1),
    "LapSum": lambda k: subsets.LapSumTopK(k, 0.5),
    "optimal transport": lambda k: subsets.OptimalTransportTopK(k, 0.5),
    "sparse projection": lambda k: subsets.ProjectionTopK(k, 1.0),
}
EXPERTS = 10


class Experts(nn.Module):
    """Ten classifiers in one: [batch, pixels] -> log-probabilities [batch, experts, 10]."""

    def __init__(self, pixels: int, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(EXPERTS, pixels, hidden) / math.sqrt(pixels / 2))
        self.second = nn.Parameter(torch.randn(EXPERTS, hidden, 10) / math.sqrt(hidden / 2))
        # expert e knows the digits e, e + 1 and e + 3: every digit is known to three, no two experts know the same
        self.known = torch.tensor([[(digit - e) % 10 in (0, 1, 3) for digit in range(10)] for e in range(EXPERTS)])

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = torch.relu(torch.einsum("bp,eph->beh", pixels, self.first))
        return torch.einsum("beh,ehc->bec", hidden, self.second).log_softmax(-1)

    def learn(self, images: Images, steps: int) -> None:
        """Trains every expert on the digits that it is to know."""
        optimiser = torch.optim.Adam(self.parameters(), 3e-3)
        for _ in range(steps):
            chosen = torch.randint(len(images.numbers), (256,))
            numbers = images.numbers[chosen]
            losses = -self(images.pixels[chosen].flatten(1)).gather(2, numbers[:, None, None].expand(-1, EXPERTS, 1))
            loss = losses[..., 0][self.known[:, numbers].T].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def selector(pixels: int, outputs: int) -> nn.Sequential:
    """The network that scores the experts; with ten outputs that mean digits it is the plain classifier."""
    return nn.Sequential(nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, outputs))


def cross_entropy(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Of averaged predictions; a hundredth of doubt keeps the loss finite where every expert is wrong."""
    return -(0.99 * probabilities.gather(1, numbers[:, None]) + 0.001).log().mean()


class Trained(NamedTuple):
    """A selector and the top-k that it was trained through."""

    network: nn.Module
    choose: nn.Module


def train(choose: nn.Module, opinions: Tensor, images: Images, options: Namespace, name: str) -> Trained:
    """Trains a selector through `choose` by the loss of the chosen experts' averaged opinion."""
    torch.manual_seed(options.seed)
    pixels = images.pixels.flatten(1)
    network = selector(pixels.shape[1], EXPERTS)
    optimiser = torch.optim.Adam(network.parameters(), options.lr)
    for _ in tqdm(range(options.steps), desc=f"{name:20}", dynamic_ncols=True, disable=None, leave=False):
        chosen = torch.randint(len(pixels), (options.batch,))
        membership = choose(network(pixels[chosen]))  # [batch, experts], sums to k
        mixed = torch.einsum("be,bec->bc", membership / options.k, opinions[chosen])
        loss = cross_entropy(mixed, images.numbers[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return Trained(network, choose)


@torch.no_grad()
def selection(network: nn.Module, images: Images, k: int) -> Tensor:
    """The hard choice of k experts for every image, [images, experts]."""
    return dl.topk(network(images.pixels.flatten(1)), k, hard=True).membership


def accuracy(probabilities: Tensor, numbers: Tensor) -> float:
    return 100 * (probabilities.argmax(-1) == numbers).float().mean().item()


def classifier(images: Images, options: Namespace) -> nn.Module:
    """For comparison: the selector's network, trained as long to name the digit itself."""
    torch.manual_seed(options.seed)
    pixels = images.pixels.flatten(1)
    network = selector(pixels.shape[1], 10)
    optimiser = torch.optim.Adam(network.parameters(), options.lr)
    for _ in range(options.steps):
        chosen = torch.randint(len(pixels), (options.batch,))
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(pixels[chosen]), images.numbers[chosen]).backward()
        optimiser.step()
    return network


def draw(experts: Experts, chosen: Tensor, numbers: Tensor, rows: list[tuple[str, float]], path: Path) -> None:
    """What the experts know, whom the selector asks about which digit, and the accuracies."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    known, asked, bars = figure.subplots(1, 3, width_ratios=[1, 1, 1.2])
    share = torch.stack([chosen[numbers == digit].mean(0) for digit in range(10)], 1)
    for axes, matrix, title in ((known, experts.known.float(), "digits that each expert has seen"),
                                (asked, share, "how often it is asked about each")):  # fmt: skip
        axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        axes.set(title=title, xlabel="digit", ylabel="expert", xticks=range(10), yticks=range(EXPERTS))
    names, values = zip(*rows, strict=True)
    colours = ["#0969da" if name in METHODS else "#8c959f" for name in names]
    bars.barh(names, values, color=colours)
    bars.invert_yaxis()
    bars.bar_label(bars.containers[0], fmt="%.1f", padding=2)
    bars.set(xlabel="accuracy on unseen digits, %", xlim=(0, 109))
    bars.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__, __doc__, seed="of the split, the initial weights and the noise", quick={"steps": 100}
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of MNIST idx files to use in place of scikit-learn's digits")
    add("--methods", nargs="*", choices=list(METHODS), metavar="NAME", default=list(METHODS), help="which")
    add("--k", type=int, default=3, help="experts that are asked")
    add("--steps", type=int, default=1500, help="training steps of each selector")
    add("--batch", type=int, default=128, help="images in a step")
    add("--lr", type=float, default=5e-3, help="learning rate of Adam")
    options = parser.options(argv)
    if min(options.steps, options.batch) < 1 or not 0 < options.lr < math.inf or not options.methods:
        parser.error("--steps, --batch and --lr must be positive, and --methods not empty")
    if not 1 <= options.k <= EXPERTS:
        parser.error(f"--k must be in [1, {EXPERTS}]")
    return options


def run(options: Namespace) -> Path:
    """Trains, prints the table, draws the picture."""
    k = options.k
    torch.manual_seed(options.seed)
    training, *rest = split(load_digits(options.data), options.seed)
    test = Images(*map(torch.cat, zip(*rest, strict=True)))  # nothing is tuned, so no validation part is needed
    experts = Experts(training.pixels[0].numel())
    experts.learn(training, 600)
    with torch.no_grad():
        opinions, test_opinions = (experts(images.pixels.flatten(1)).exp() for images in (training, test))
    print(f"{EXPERTS} experts that know three digits each; {k} are asked. Ctrl-C ends the trainings early.\n")
    print(f"{'':24}{'experts run':>12}{'accuracy %':>12}{'seconds':>9}", flush=True)
    rows: list[tuple[str, float]] = []

    def report(name: str, asked: str, probabilities: Tensor, seconds: float | None = None) -> None:
        rows.append((name, accuracy(probabilities, test.numbers)))
        shown = f"{seconds:9.1f}" if seconds is not None else ""
        print(f"{name:24}{asked:>12}{rows[-1][1]:>12.1f}{shown}", flush=True)

    alone = [accuracy(test_opinions[:, e], test.numbers) for e in range(EXPERTS)]
    report("best single expert", "1", test_opinions[:, alone.index(max(alone))])
    report("soft voting", str(EXPERTS), test_opinions.mean(1))
    report("hard voting", str(EXPERTS), nn.functional.one_hot(test_opinions.argmax(-1), 10).float().mean(1))
    chosen: Tensor | None = None
    with suppress(KeyboardInterrupt):
        for name in options.methods:
            begun = time.perf_counter()
            trained = train(METHODS[name](k), opinions, training, options, name)
            asked = selection(trained.network, test, k)
            chosen = asked if chosen is None else chosen
            mixed = torch.einsum("be,bec->bc", asked / k, test_opinions)
            report(name, str(k), mixed, time.perf_counter() - begun)
        report("plain classifier", "0", classifier(training, options)(test.pixels.flatten(1)).detach())
    if chosen is None:
        raise KeyboardInterrupt
    print("\nThe plain classifier is the selector's network, trained to name the digit itself.")
    draw(experts, chosen, test.numbers, rows, options.out / "select_experts.png")
    return options.out / "select_experts.png"


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
