"""Learns which matches between two images RANSAC should draw, end to end, from the error of what it finds.

Matches of image features are mostly wrong. RANSAC draws five at a time, each five give essential matrices, and the
best one tells how the camera moved; how many draws that takes depends on how often all five are right. The usual guide
is Lowe's ratio, the distance to the nearest descriptor by that to the second nearest. Here a small network that sees
all matches of a pair (where they are, and their ratios) adds its own opinion to that guide. It starts from the ratio
alone, is warmed up for a moment by classifying inliers, and is then trained through RANSAC: the expected error of the
drawn hypotheses, with its gradient by the logits through the choice of the samples.

It is trained on pairs of one scene (castle) and judged on pairs of another (Herz-Jesus) with a small budget of
samples. --data is the folder of two_view_castle.npz and two_view_herzjesu.npz; without it, scenes are made up.

Measured on all 221 held-out pairs, 64 samples each, two searches after each of three trainings, by
python examples/learned_ransac.py --data ../shared/data/robust --every 1 --seeds 3 --searches 2

                                right %  no local   AUC@5        AUC@10  AUC@20
uniform                             3.8      33.2    82.9   84.8 +- 1.8    86.0
Lowe's ratio, times 10             38.8      80.6    94.3   96.2 +- 0.3    97.4
Lowe's ratio, times 20             71.6      87.9    94.6   96.6 +- 0.1    97.6
both of these, mixed               48.8      87.8    95.8   97.7 +- 0.1    98.7
classification only                39.8      81.2    93.9   95.8 +- 0.7    97.0
learned end to end                 77.5      84.0    92.8   94.6 +- 2.8    95.6
learned end to end, times 0.5      73.9      87.1    93.8   95.7 +- 2.0    96.7
learned, mixed with the ratio      48.9      87.8    95.4   97.4 +- 0.2    98.4

The training does what it is asked to, twice as many samples of inliers only as with the ratio times 10, and alone the
search is worse for it: on pairs of the other scene it draws the same few matches again and again, wrong ones or a
cluster of right ones. Halving the logits (chosen on castle) is not enough. Drawing half of the matches by the ratio
(tried after the other rows were seen, as some settings were in early trials) is: better than the ratio times 10 or 20
in all three trainings. But so is the ratio mixed with itself, without any learning: what helps a search is that its
samples differ.
"""

from __future__ import annotations

import math
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import command
import torch
from torch import Tensor, nn

import difflayers as dl

try:
    from image_pairs import Pairs, load_pairs, peers, synthetic_pairs
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure  # without pyplot: it draws with Agg and needs no display
    from tqdm import tqdm
except ImportError as error:
    sys.exit(f"learned_ransac.py: {error}; run: pip install 'difflayers[examples]'")

ESSENTIAL = dl.ransac.EssentialMatrix()
MANY = 10_000  # samples of the searches to compare with
TRUE_MATCHES = 64  # of a pair, by which its hypotheses are judged in training


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Shows the defaults, and the table above as it is."""


class Block(nn.Module):
    """A residual block, the same for each match, that compares it with all others by attentive normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.attention = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.attention(x).softmax(-2)
        hidden = torch.relu(normalised(self.first(x), weights[..., :1]))
        return x + torch.relu(normalised(self.second(hidden), weights[..., 1:]))


def normalised(x: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean 0 and variance 1 over the matches: what a channel says about one match among the others.

    Yi et al., "Learning to Find Good Correspondences", CVPR 2018; with weights: Sun et al., "ACNe", CVPR 2020.
    """
    centred = x - (weights * x).sum(-2, keepdim=True)
    variance = (weights * centred.square()).sum(-2, keepdim=True)
    return centred * (variance + 1e-3).rsqrt()  # where all matches agree, nothing is to be blown up


class Scorer(nn.Module):
    """Matches `[..., n, 4]` and ratios `[..., n]` -> logits `[..., n]`, in any order; at first -prior * ratio."""

    def __init__(self, prior: float, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.prior = prior
        self.first = nn.Linear(5, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, points: Tensor, ratios: Tensor) -> Tensor:
        x = torch.cat([2 * points, 4 * (1 - ratios.unsqueeze(-1))], -1)  # all of size 1 or so
        return self.last(self.blocks(self.first(x))).squeeze(-1) - self.prior * ratios


class Batch(NamedTuple):
    """points `[batch, n, 4]`, ratios `[batch, n]`, inliers `[batch, n]`."""

    points: Tensor
    ratios: Tensor
    inliers: Tensor


def batches(pairs: Pairs, options: Namespace, generator: torch.Generator) -> Iterator[Batch]:
    """Random pairs with some of their matches, the images mirrored and swapped at random: still two views."""
    count, n = pairs.ratios.shape
    while True:
        rows = torch.randint(count, (options.batch, 1), generator=generator)
        chosen = torch.rand(options.batch, n, generator=generator).argsort(-1)[:, : options.matches]
        points = pairs.points[rows, chosen]
        points = points * (2.0 * torch.randint(2, (options.batch, 1, 2), generator=generator) - 1).repeat(1, 1, 2)
        swap = torch.rand(options.batch, 1, 1, generator=generator) < 0.5
        yield Batch(torch.where(swap, points.roll(2, -1), points), pairs.ratios[rows, chosen],
                    pairs.inliers[rows, chosen])  # fmt: skip


def classification(scorer: Scorer, batch: Batch) -> Tensor:
    """The loss of the warm-up: cross-entropy of the logits, moved to where the ratio of 0.8 is the limit."""
    logits = scorer(batch.points, batch.ratios) + 0.8 * scorer.prior
    return dl.ransac.inlier_cross_entropy(logits, batch.inliers).mean()


def end_to_end(pairs: Pairs, options: Namespace, generator: torch.Generator) -> Callable[[Scorer, Batch], Tensor]:
    """The loss through RANSAC: how far the true matches are from a drawn hypothesis, in the mean."""
    layer = dl.ransac.RANSAC(ESSENTIAL, threshold=1 / pairs.focal, hypotheses=options.hypotheses, refiner=None).train()

    def loss(scorer: Scorer, batch: Batch) -> Tensor:
        hypotheses = layer(batch.points, scorer(batch.points, batch.ratios), generator=generator).hypotheses
        # a random few of the true matches judge as well as all of them, and many times faster
        order = batch.inliers + torch.rand(batch.ratios.shape, generator=generator)
        judges = order.topk(min(TRUE_MATCHES, order.shape[-1]), -1).indices
        points, true = batch.points.take_along_dim(judges.unsqueeze(-1), 1), batch.inliers.gather(1, judges)
        losses = dl.ransac.epipolar_loss(hypotheses.models, points, true, limit=options.limit / pairs.focal)
        return dl.ransac.expected_loss(hypotheses, losses, dl.ransac.Mean()).mean()

    return loss


def train(
    scorer: Scorer, loss: Callable[[Scorer, Batch], Tensor], data: Iterator[Batch], steps: int, lr: float, name: str
) -> list[float]:
    """Trains in place; Ctrl-C ends it early. Returns the losses."""
    optimiser = torch.optim.Adam(scorer.parameters(), lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1, step / 20 + 0.05, 1 - step / steps))
    curve: list[float] = []
    with suppress(KeyboardInterrupt):
        for _ in (bar := tqdm(range(steps), desc=name, leave=False, disable=None)):
            value = loss(scorer, next(data))
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            curve.append(value.item())
            bar.set_postfix_str(f"loss {curve[-1]:.3f}", refresh=False)
    return curve


class Areas(NamedTuple):
    """Under the recall curve up to 5, 10 and 20 degrees, exact, in %."""

    at_5: float
    at_10: float
    at_20: float


class Row(NamedTuple):
    """Of one way to draw: the share of samples of inliers only, and areas under the curve of pose errors, in %."""

    right: float
    alone: float  # the area at 10 degrees without local optimisation
    standard: Areas
    spread: float  # of the area at 10 degrees, from one search to the next
    milliseconds: float  # a pair


def areas(pairs: Pairs, rotations: Tensor, translations: Tensor) -> Areas:
    """Of the larger one of the angles of rotation and translation; NaN is a failure."""
    errors = dl.ransac.pose_error(rotations, translations, pairs.rotations, pairs.translations).largest
    return Areas(*(100 * dl.ransac.auc_exact(errors, (5, 10, 20))).tolist())


def search(
    pairs: Pairs, logits: Tensor | None, samples: int, seed: int, **settings: Any
) -> tuple[Areas, dl.ransac.RansacResult]:
    """All pairs in one call."""
    layer = dl.ransac.RANSAC(ESSENTIAL, threshold=1 / pairs.focal, max_iterations=samples, **settings).eval()
    with torch.no_grad():
        result = layer(pairs.points, logits, generator=torch.Generator().manual_seed(seed))
        pose = dl.ransac.recover_pose(result.model, pairs.points, result.inliers)
    return areas(pairs, pose.rotation, pose.translation), result


def mixed(first: Tensor, second: Tensor) -> Tensor:
    """Logits of the mean of two distributions over the points: what one of them misses, the other may draw."""
    return torch.logaddexp(first.log_softmax(-1), second.log_softmax(-1))


def judge(pairs: Pairs, logits: Tensor, options: Namespace, seed: int) -> Row:
    """With few samples, and the standard search and without its local optimisation."""
    drawn = dl.ransac.GumbelTopK().sample(logits, 5, 200, generator=torch.Generator().manual_seed(seed))
    right = pairs.inliers.gather(1, drawn.flatten(1)).view(drawn.shape).all(-1).float().mean()
    seeds = range(seed * options.searches, (seed + 1) * options.searches)
    alone, _ = search(pairs, logits, options.samples, seed, local=None)
    begun = time.perf_counter()
    standard = torch.tensor([search(pairs, logits, options.samples, one)[0] for one in seeds])
    seconds = (time.perf_counter() - begun) / len(seeds)
    spread = float(standard[:, 1].std()) if len(seeds) > 1 else math.nan
    found = Areas(*standard.mean(0).tolist())
    return Row(100 * float(right), alone.at_10, found, spread, 1e3 * seconds / len(pairs.points))


def learn(training: Pairs, options: Namespace, seed: int) -> tuple[Scorer, Scorer, float]:
    """The scorer after the warm-up, the one trained end to end, and the milliseconds of an end-to-end step."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data = batches(training, options, generator)
    warm, scorer = Scorer(options.prior), Scorer(options.prior)
    train(warm, classification, data, options.warm, options.lr, "classification")
    scorer.load_state_dict(warm.state_dict())
    begun = time.perf_counter()
    curve = train(scorer, end_to_end(training, options, generator), data, options.steps, options.lr, "end to end")
    return warm, scorer, 1e3 * (time.perf_counter() - begun) / max(1, len(curve))


def draw(pairs: Pairs, guides: dict[str, Tensor], options: Namespace, path: Path) -> None:
    """The pair with the median share of inliers: each match a line from where it is to where it goes."""
    at = int(pairs.inliers.float().mean(-1).argsort()[len(pairs.points) // 2])
    one = pairs.part(slice(at, at + 1))
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    for axes, (name, logits) in zip(figure.subplots(1, len(guides)), guides.items(), strict=True):
        _, result = search(one, logits[at : at + 1], options.samples, options.seed)
        samples = dl.ransac.GumbelTopK().sample(
            logits[at : at + 1], 5, options.samples, generator=torch.Generator().manual_seed(options.seed)
        )
        counts = torch.bincount(samples.flatten(), minlength=one.ratios.shape[1])
        segments = (one.points[0].view(-1, 2, 2) * pairs.focal).numpy()
        kept, true = result.inliers[0], one.inliers[0]
        axes.add_collection(LineCollection(segments[~kept], colors="#d0d7de", linewidths=0.4))
        axes.add_collection(LineCollection(segments[kept], colors="#1a7f37", linewidths=0.8))
        for mask, colour, label in ((true, "#0969da", "right"), (~true, "#cf222e", "wrong")):
            mask = mask & (counts > 0)
            size = 8 * counts[mask]
            axes.scatter(*segments[mask, 0].T, s=size, c=colour, alpha=0.8, lw=0, zorder=3, label=f"drawn, {label}")
        axes.plot([], [], c="#1a7f37", label="kept")
        axes.plot([], [], c="#d0d7de", label="rejected")
        wrong = (counts * ~true).sum() / counts.sum()
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.set_title(
            f"{name}: {100 * wrong:.0f} % of those drawn wrong, {int(kept.sum())} kept\n(larger: drawn more often)"
        )
        axes.autoscale()
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=8, markerscale=0.5)
    figure.savefig(path, dpi=130)


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command.Parser(
        __file__,
        __doc__,
        seed="of the weights, the batches and the samples",
        quick={"warm": 20, "steps": 20, "batch": 4, "every": 10},
        style=Help,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="folder of two_view_castle.npz and two_view_herzjesu.npz")
    add("--warm", type=int, default=200, help="steps of classification")
    add("--steps", type=int, default=300, help="steps of training end to end")
    add("--batch", type=int, default=8, help="pairs in a step")
    add("--matches", type=int, default=500, help="matches of each pair in a step")
    add("--hypotheses", type=int, default=128, help="samples for each pair in a step")
    add("--limit", type=float, default=5.0, help="pixels beyond which a true match counts as lost, in the loss")
    add("--prior", type=float, default=10.0, help="logits start from minus this times Lowe's ratio")
    add("--lr", type=float, default=2e-3, help="learning rate of Adam")
    add("--samples", type=int, default=64, help="budget of samples for each held-out pair")
    add("--searches", type=int, default=1, help="how often each held-out pair is searched; the mean is shown")
    add("--every", type=int, default=2, help="takes every so-many-th held-out pair")
    add("--peers", action="store_true", help=f"also searches of {MANY} samples: ours, and those of OpenCV and PoseLib")
    add("--seeds", type=int, default=1, help="how many seeds, for mean and standard deviation")
    options = parser.options(argv)
    whole = (options.warm, options.steps, options.batch, options.hypotheses, options.samples, options.every)
    if min(*whole, options.searches, options.seeds) < 1 or options.matches < 5:
        parser.error(
            "--warm, --steps, --batch, --hypotheses, --samples, --searches, --every and --seeds must be positive, "
            "and --matches at least 5"
        )
    if not all(0 < x < math.inf for x in (options.limit, options.lr)) or not 0 <= options.prior < math.inf:
        parser.error("--limit and --lr must be positive, and --prior not negative")
    return options


def show(rows: dict[str, list[Row]]) -> None:
    """The table: means over the seeds, and the standard deviation of the main figure from seed to seed."""
    print(f"{'':30}{'right %':>9}{'no local':>10}{'AUC@5':>8}{'AUC@10':>14}{'AUC@20':>8}{'a search':>10}{'ms/pair':>9}")
    for name, of_seeds in rows.items():
        flat = torch.tensor([(row.right, row.alone, *row.standard, row.spread, row.milliseconds) for row in of_seeds])
        right, alone, at_5, at_10, at_20, spread, milliseconds = flat.mean(0).tolist()
        main = f"{at_10:.1f}"
        if len(of_seeds) > 1:
            main += f" +- {flat[:, 3].std():.1f}"
        cells = [f"{right:9.1f}{alone:10.1f}" if right == right else " " * 19, f"{at_5:8.1f}{main:>14}{at_20:8.1f}"]
        cells.append(f"{f'+- {spread:.1f}' if spread == spread else '':>10}{milliseconds:9.0f}")
        print(f"{name:30}{''.join(cells)}", flush=True)


def run(options: Namespace) -> Path:
    """Trains, judges, prints the table, draws the picture."""
    if options.data:
        training, held_out = load_pairs(options.data, "castle"), load_pairs(options.data, "herzjesu")
    else:
        training, held_out = synthetic_pairs(160, 1000, 1), synthetic_pairs(160, 1000, 2)
    held_out = held_out.part(slice(None, None, options.every))
    share = 100 * held_out.inliers.float().mean(-1).median()
    print(
        f"{len(training.points)} pairs to learn from, {len(held_out.points)} held out with {held_out.ratios.shape[1]} "
        f"matches, {share:.0f} % of them right in the median. Ctrl-C ends a training early.\n"
    )
    rows: dict[str, list[Row]] = {}
    guides: dict[str, Tensor] = {}
    steps: list[float] = []
    ratio = -options.prior * held_out.ratios
    for seed in range(options.seed, options.seed + options.seeds):
        try:
            warm, scorer, milliseconds = learn(training, options, seed)
            with torch.no_grad():
                now = {
                    "uniform": torch.zeros_like(held_out.ratios),
                    f"Lowe's ratio, times {options.prior:g}": ratio,
                    f"Lowe's ratio, times {2 * options.prior:g}": 2 * ratio,
                    "both of these, mixed": mixed(ratio, 2 * ratio),
                    "classification only": warm(held_out.points, held_out.ratios),
                    "learned end to end": (learned := scorer(held_out.points, held_out.ratios)),
                    "learned end to end, times 0.5": 0.5 * learned,
                    "learned, mixed with the ratio": mixed(learned, ratio),
                }
            judged = {name: judge(held_out, logits, options, seed) for name, logits in now.items()}
        except KeyboardInterrupt:
            if not rows:
                raise
            break
        guides = now
        steps.append(milliseconds)
        for name, row in judged.items():
            rows.setdefault(name, []).append(row)
    names = list(guides)
    if options.peers:
        for name in (names[0], names[1], names[-1]):
            begun = time.perf_counter()
            found, _ = search(held_out, guides[name], MANY, options.seed)
            spent = 1e3 * (time.perf_counter() - begun) / len(held_out.points)
            rows[f"{name}, {MANY}"] = [Row(math.nan, math.nan, found, math.nan, spent)]
        for name, estimate in peers(MANY).items():
            begun = time.perf_counter()
            bar = tqdm(held_out.points, name, leave=False, disable=None)
            poses = [estimate(points, held_out.focal) for points in bar]
            spent = 1e3 * (time.perf_counter() - begun) / len(held_out.points)
            found = areas(held_out, *(torch.stack(part) for part in zip(*poses, strict=True)))
            rows[f"{name}, {MANY}"] = [Row(math.nan, math.nan, found, math.nan, spent)]
    show(rows)
    print(
        f"\nWith {options.samples} samples a pair. right: samples of inliers only; no local: AUC@10 without local\n"
        f"optimisation; AUC: exact area under the recall of pose errors, %, +- from training to training; a search:\n"
        f"of AUC@10 from one search of the same pairs to the next. {sum(steps) / len(steps):.0f} ms a step."
    )
    path = options.out / "learned_ransac.png"
    draw(held_out, {name: guides[name] for name in (names[1], names[-1])}, options, path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)  # as fast as two for tensors this small, and it does not suffer on a busy machine
    return command.run(__file__, run, options)


if __name__ == "__main__":
    sys.exit(main())
