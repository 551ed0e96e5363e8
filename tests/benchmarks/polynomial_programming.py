"""The polynomial programming benchmark of the ReinMax paper: does an estimator find the optimum at all?

128 independent yes-or-no latents, written as two classes each, minimise E mean_i |z_i - 0.45|^p. The best is z = 0
throughout, with the loss 0.45^p; an estimator whose bias moves the zero of its gradient field stops elsewhere. Setting
as in the official code: logits uniform in (-0.01, 0.01), Adam with 1e-3, batches of 64, 8,000 steps, temperature 1
where the name does not say otherwise.

    python tests/benchmarks/polynomial_programming.py                  # everything, in full
    python tests/benchmarks/polynomial_programming.py --steps 500 --estimators reinmax --powers 2

The paper shows curves and no numbers. The figures to compare with were obtained from the official code
(LiyuanLucasLiu/ReinMax 2367056, poly/poly_programming.py), one seed, 8,000 steps; see OFFICIAL.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

LATENTS, TARGET, BATCH, RATE, SPREAD = 128, 0.45, 64, 1e-3, 0.01

# name -> (function of difflayers.estimators, settings); those that this version does not have are left out
ESTIMATORS = {
    "reinmax": ("reinmax", {}),
    "gumbel_softmax_0.5": ("gumbel_softmax", {"temperature": 0.5, "hard": True}),
    "gumbel_softmax_1": ("gumbel_softmax", {"temperature": 1.0, "hard": True}),
    "gumbel_rao_0.5": ("gumbel_rao", {"temperature": 0.5, "samples": 10}),
    "gapped_1": ("gapped_straight_through", {"temperature": 1.0}),
    "straight_through": ("straight_through", {}),
}

# the exact expected loss at the end, of the official code's estimators run by us; per power
OFFICIAL = {
    "reinmax": {1.5: 0.30531, 2.0: 0.20373, 3.0: 0.09154},
    "gumbel_softmax_0.5": {1.5: 0.34986, 2.0: 0.24306, 3.0: 0.11491},
    "gumbel_softmax_1": {1.5: 0.35134, 2.0: 0.24583, 3.0: 0.11887},
    "gumbel_rao_0.5": {1.5: 0.34996},
    "gapped_1": {1.5: 0.35220, 2.0: 0.24747, 3.0: 0.12127},
    "straight_through": {1.5: 0.35220, 2.0: 0.24747, 3.0: 0.12127},
}


def available() -> dict[str, Callable[..., Tensor]]:
    """The estimators that this version of difflayers has."""
    module = importlib.import_module("difflayers.estimators")
    return {
        name: partial(getattr(module, function), **settings)
        for name, (function, settings) in ESTIMATORS.items()
        if hasattr(module, function)
    }


def expected_loss(logits: Tensor, power: float) -> float:
    """The exact expectation of the loss, in float64."""
    yes = logits.double().softmax(-1)[:, 1].mean().item()
    return yes * (1 - TARGET) ** power + (1 - yes) * TARGET**power


def train(
    estimator: Callable[..., Tensor], power: float, steps: int, seed: int
) -> tuple[list[tuple[int, float]], float]:
    """Optimises the logits; returns the curve [(step, exact expected loss)] and the seconds it took."""
    torch.manual_seed(seed)
    logits = torch.empty(LATENTS, 2).uniform_(-SPREAD, SPREAD).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=RATE)
    curve = [(0, expected_loss(logits.detach(), power))]
    start = time.perf_counter()
    for step in range(1, steps + 1):
        yes = estimator(logits.expand(BATCH, LATENTS, 2))[..., 1]
        loss = (yes - TARGET).abs().pow(power).mean() if power != 2 else (yes - TARGET).square().mean()
        (logits.grad,) = torch.autograd.grad(loss, logits)
        optimiser.step()
        if step % max(1, steps // 40) == 0:
            curve.append((step, expected_loss(logits.detach(), power)))
    return curve, time.perf_counter() - start


def table(results: dict[tuple[str, float], float], powers: list[float], steps: int) -> str:
    """The results as Markdown: the loss, the gap to the optimum, and the official code's figures in brackets."""
    head = [f"p = {power:g} (optimum {TARGET**power:.5f})" for power in powers]
    lines = [f"| estimator | {' | '.join(head)} |", f"|{'---|' * (len(powers) + 1)}"]
    start = [f"{(TARGET**power + (1 - TARGET) ** power) / 2:.5f}" for power in powers]
    for name in dict.fromkeys(name for name, _ in results):
        cells = []
        for power in powers:
            value, best = results[name, power], TARGET**power
            official = OFFICIAL.get(name, {}).get(power)
            shown = f"{official:.5f}, +{official - best:.4f}" if official else "not run"
            cells.append(f"{value:.5f}, +{value - best:.4f} [{shown}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| (logits of zero) | {' | '.join(start)} |")
    lines += ["", f"Exact expected loss after {steps} steps, and the gap to the optimum; in brackets the same of the"]
    lines += ["official code (ReinMax 2367056) run by us in full, one seed. The paper itself shows curves only."]
    return "\n".join(lines)


def plot(curves: dict[tuple[str, float], list[tuple[int, float]]], powers: list[float], path: Path) -> None:
    """Gap to the optimum against the step, a panel per power."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(powers), 4), layout="constrained")
    panels = figure.subplots(1, len(powers), squeeze=False)[0]
    for panel, power in zip(panels, powers, strict=True):
        for (name, at), curve in curves.items():
            if at == power:
                panel.plot(*zip(*[(step, loss - TARGET**power) for step, loss in curve], strict=True), label=name)
        panel.set(yscale="log", title=f"p = {power:g}", xlabel="step", ylabel="expected loss above the optimum")
    panels[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs what the command line asks for."""
    choices = available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--powers", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    parser.add_argument("--estimators", nargs="+", choices=choices, default=list(choices))
    parser.add_argument("--out", type=Path, help="write the table into this file as well")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results, curves = {}, {}
    for name in arguments.estimators:
        for power in arguments.powers:
            curve, seconds = train(choices[name], power, arguments.steps, arguments.seed)
            results[name, power], curves[name, power] = curve[-1][1], curve
            print(f"{name}, p = {power:g}: {curve[-1][1]:.5f} in {seconds:.0f} s", flush=True)
    text = table(results, arguments.powers, arguments.steps)
    print(f"\n{text}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(curves, arguments.powers, arguments.plot)


if __name__ == "__main__":
    main()
