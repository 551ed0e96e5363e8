"""ReinMax's polynomial programming: which estimators find the optimum at all?

128 yes-or-no latents minimise E mean |z - 0.45|^p; an estimator whose bias moves the zero of its gradient stops
elsewhere. The setting of Liu et al. (arXiv 2304.08612, section 6.1) and of their code, as in
tests/benchmarks/polynomial_programming.py, with several seeds. All p and all seeds of an estimator are optimised at
once: Adam takes every logit for itself, so nothing else changes.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence

import torch
from base import Claim, Row, Store, load, main, markdown, pairs, parse, parser, values, verdict
from polynomial_programming import BATCH, LATENTS, OFFICIAL, RATE, SPREAD, TARGET, available, expected_loss
from torch import Tensor
from tqdm import tqdm

EXPERIMENT = "reinmax_polynomials"
NAMES = {
    "reinmax": "ReinMax", "straight_through": "straight-through", "gumbel_softmax_0.5": "Gumbel-Softmax 0.5, hard",
    "gumbel_softmax_1": "Gumbel-Softmax 1, hard", "gapped_1": "gapped straight-through",
    "gumbel_rao_0.5": "Gumbel-Rao 0.5",
}  # fmt: skip


def table(content: Row) -> str:
    """The gap to the optimum, times 1000, ours and that of the official code."""
    rows = content["rows"]
    powers = sorted({row["power"] for row in rows})
    lines = []
    for name in dict.fromkeys(row["estimator"] for row in rows):
        cells = []
        for power in powers:
            gaps = [1e3 * gap for gap in values(rows, "gap", estimator=name, power=power)]
            official = OFFICIAL.get(name, {}).get(power)
            spread = f" ± {(max(gaps) - min(gaps)) / 2:.2f}" if len(gaps) > 1 else ""
            cells.append(f"{sum(gaps) / len(gaps):.2f}{spread}" if gaps else "")
            cells.append(f"{1e3 * (official - TARGET**power):.1f}" if official else "not run")
        lines.append([NAMES[name], *cells])
    head = [f"p = {power:g}{what}" for power in powers for what in (", ours", ", official")]
    return markdown(["gap, times 1000", *head], lines)


def claims(content: Row) -> list[Claim]:
    """What the paper says."""
    rows = content["rows"]

    def against(name: str) -> str:
        differences = pairs(rows, "gap", {"estimator": name}, {"estimator": "reinmax"}, ("power", "seed"))
        return verdict([1e3 * x for x in differences], " / 1000")

    said = {
        "ReinMax ends nearer to the optimum than straight-through": "straight_through",
        "ReinMax ends nearer to the optimum than Gumbel-Softmax (0.5)": "gumbel_softmax_0.5",
        "ReinMax ends nearer to the optimum than the gapped straight-through": "gapped_1",
    }
    return [Claim(text, against(name)) for text, name in said.items()]


def train(
    estimator: Callable[..., Tensor], powers: Sequence[float], seeds: int, steps: int, label: str
) -> tuple[Tensor, float]:
    """The logits `[powers, seeds, latents, 2]` in the end, and the seconds."""
    starts = [torch.empty(LATENTS, 2).uniform_(-SPREAD, SPREAD, generator=torch.Generator().manual_seed(seed))
              for seed in range(seeds)]  # fmt: skip
    logits = torch.stack(starts).repeat(len(powers), 1, 1, 1).requires_grad_()
    exponents = torch.tensor(powers)[:, None, None, None]
    at_no, at_yes = -exponents * TARGET ** (exponents - 1), exponents * (1 - TARGET) ** (exponents - 1)
    optimiser = torch.optim.Adam([logits], lr=RATE)
    torch.manual_seed(seeds)
    begun = time.process_time()
    for _ in tqdm(range(steps), desc=label, dynamic_ncols=True, disable=None, leave=False):
        yes = estimator(logits.unsqueeze(2).expand(-1, -1, BATCH, -1, -1))[..., 1]
        # the samples are 0 or 1, so that the derivative of |z - c|^p has two values
        slope = torch.where(yes.detach() > 0.5, at_yes, at_no) / (BATCH * LATENTS)
        (logits.grad,) = torch.autograd.grad(yes, logits, slope)
        optimiser.step()
    return logits.detach(), time.process_time() - begun


def run(options: Namespace) -> str:
    """Everything that is not there yet."""
    settings = {"steps": options.steps, "powers": options.powers, "seeds": options.seeds}
    store, choices = Store(options, EXPERIMENT, settings), available()
    cells = [(power, seed) for power in options.powers for seed in range(options.seeds)]
    for name in tqdm(options.estimators, desc="estimators", dynamic_ncols=True, disable=None):
        if all(store.find({"estimator": name, "power": power, "seed": seed}) for power, seed in cells):
            continue
        logits, seconds = train(choices[name], options.powers, options.seeds, options.steps, NAMES[name])
        for (power, seed), found in zip(cells, logits.flatten(0, 1), strict=True):
            loss = expected_loss(found, power)
            row = {"loss": loss, "gap": loss - TARGET**power, "seconds": round(seconds / len(cells), 1)}
            store.row({"estimator": name, "power": power, "seed": seed}, row.copy)
    content = load(options.out, EXPERIMENT)
    assert content is not None
    return table(content)


def options(argv: Sequence[str] | None) -> Namespace:
    arguments = parser("reinmax_polynomials.py", __doc__, seeds=5)
    arguments.add_argument("--steps", type=int, default=8000, help="of each optimisation")
    arguments.add_argument("--powers", type=float, nargs="+", default=[1.5, 2.0, 3.0], help="p")
    names = [name for name in NAMES if name in available()]
    arguments.add_argument("--estimators", nargs="+", choices=names, default=names, metavar="NAME", help="which")
    return parse(arguments, argv, steps=500, seeds=1)


if __name__ == "__main__":
    sys.exit(main("reinmax_polynomials.py", options(None), run))
