"""Prints the tables of docs/choosing.md and docs/subsets.md: every estimator against exact enumeration.

    python tests/benchmarks/choose_estimator.py                        # the tables, as Markdown
    python tests/benchmarks/choose_estimator.py --out tables.md --plot out/choosing.png

The losses are polynomials, sum_m (w_m . z - b_m)^p of 8 terms with p = 1, 2 or 3, and for k of n a dense quadratic form
z' A z + c . z; their coefficients and the logits are standard normal. Every figure is the mean over several such
problems, as the estimator that is the best on one of them need not be on the next.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import difflayers as dl
from difflayers import diagnostics, estimators, subsets

LOSSES = (4, 64)  # evaluations that every estimator is given, for the rmse: few, where noise counts, and many

RLOO = {"RLOO(2)": estimators.RLOO(2), "RLOO(4)": estimators.RLOO(4)}
ONE_OF_N = {
    "straight_through": dl.straight_through,
    "gumbel_softmax(1, hard)": partial(dl.gumbel_softmax, temperature=1.0, hard=True),
    "gumbel_softmax(0.5, hard)": partial(dl.gumbel_softmax, temperature=0.5, hard=True),
    "gumbel_softmax(0.1, hard)": partial(dl.gumbel_softmax, temperature=0.1, hard=True),
    "gumbel_rao(0.5)": partial(dl.gumbel_rao, temperature=0.5),
    "gumbel_rao(0.1)": partial(dl.gumbel_rao, temperature=0.1),
    "gapped_straight_through": dl.gapped_straight_through,
    "reinmax": dl.reinmax,
    "reinmax(1.3)": partial(dl.reinmax, temperature=1.3),
    **RLOO,
}
YES_OR_NO = {
    "straight_through_bernoulli": dl.straight_through_bernoulli,
    "relaxed_bernoulli(1, hard)": partial(dl.relaxed_bernoulli, temperature=1.0, hard=True),
    "relaxed_bernoulli(0.5, hard)": partial(dl.relaxed_bernoulli, temperature=0.5, hard=True),
    "reinmax_bernoulli": dl.reinmax_bernoulli,
    **RLOO,
}
K_OF_N = {
    "simple": subsets.simple,
    "simple(hard=False)": partial(subsets.simple, hard=False),
    "gumbel_topk(1, hard)": partial(subsets.gumbel_topk, temperature=1.0, hard=True),
    "gumbel_topk(0.5, hard)": partial(subsets.gumbel_topk, temperature=0.5, hard=True),
    "gumbel_topk(0.25, hard)": partial(subsets.gumbel_topk, temperature=0.25, hard=True),
    **RLOO,
}
K = 3
MIXTURES = ("simple(hard=False)",)  # show the loss points that are no choices, so they are not in the competition


class Problem(NamedTuple):
    """A kind of loss: make(generator, shape) gives a function of one sample."""

    title: str
    shape: tuple[int, ...]
    kind: str | int
    make: Callable[[torch.Generator, tuple[int, ...]], Callable[[Tensor], Tensor]]
    contenders: dict[str, Any]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def polynomial(degree: int) -> Callable[[torch.Generator, tuple[int, ...]], Callable[[Tensor], Tensor]]:
    """The sum of eight powers of affine functions of the sample."""

    def make(generator: torch.Generator, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        weights, targets = normal(generator, 8, *shape), normal(generator, 8)
        return lambda sample: ((weights * sample).flatten(1).sum(1) - targets).pow(degree).sum()

    return make


def dense(generator: torch.Generator, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """A quadratic form in which every pair of elements has a coefficient."""
    matrix, linear = normal(generator, shape[0], shape[0]), normal(generator, shape[0])
    return lambda sample: sample @ matrix @ sample + linear @ sample


PROBLEMS = {
    "linear": Problem("4 choices of one of 4, linear loss", (4, 4), "one_hot", polynomial(1), ONE_OF_N),
    "quadratic": Problem("4 choices of one of 4, quadratic loss", (4, 4), "one_hot", polynomial(2), ONE_OF_N),
    "cubic": Problem("4 choices of one of 4, cubic loss", (4, 4), "one_hot", polynomial(3), ONE_OF_N),
    "yes/no quadratic": Problem("8 times yes or no, quadratic loss", (8,), "bernoulli", polynomial(2), YES_OR_NO),
    "yes/no cubic": Problem("8 times yes or no, cubic loss", (8,), "bernoulli", polynomial(3), YES_OR_NO),
    "k of n": Problem(f"{K} of 8, quadratic loss", (8,), K, dense, K_OF_N),
}


def reports(problem: Problem, options: argparse.Namespace) -> list[diagnostics.Report]:
    """One for each problem drawn."""
    found = []
    for seed in range(options.seed, options.seed + options.problems):
        generator = torch.Generator().manual_seed(seed)
        logits = normal(generator, *problem.shape)
        found.append(
            diagnostics.compare(
                problem.make(generator, problem.shape), logits, problem.contenders,
                samples=options.samples, kind=problem.kind, generator=generator,
            )
        )  # fmt: skip
    return found


def rmse(row: diagnostics.Row, losses: int) -> float:
    """Of the mean of as many gradients as this number of evaluations of the loss pays for."""
    bias_squared = max(row.bias**2 - row.standard_error**2, 0.0)  # less what the noise of the mean puts there
    return (bias_squared + row.std**2 * row.evaluations / losses) ** 0.5


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def table(found: list[diagnostics.Report]) -> str:
    """Means over the problems, as Markdown."""
    few, many = LOSSES
    head = f"| estimator | bias | std | cosine | losses | rmse, {few} losses | rmse, {many} losses | best in |"
    lines = [head, "|---|" + "---:|" * 7]
    rivals = [[row for row in report.rows if row.name not in MIXTURES] for report in found]
    winners = [[min(rows, key=partial(rmse, losses=losses)).name for rows in rivals] for losses in LOSSES]
    for name in [row.name for row in found[0].rows]:
        rows = [report[name] for report in found]
        bias = f"{mean([row.bias for row in rows]):.3f}"
        cells = [
            f"`{name}`",
            bias if any(row.significant for row in rows) else f"({bias})",
            f"{mean([row.std for row in rows]):.2f}",
            f"{mean([row.cosine for row in rows]):.3f}",
            f"{rows[0].evaluations:g}",
            *(f"{mean([rmse(row, losses) for row in rows]):.2f}" for losses in LOSSES),
            "" if name in MIXTURES else ", ".join(str(names.count(name)) for names in winners),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def in_turn(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The law of Gumbel top-k: every ordered choice of k as its members [S, n], and its probability [S]."""
    n = len(logits)
    sequences = torch.tensor(list(itertools.permutations(range(n), k)))
    members = torch.zeros(len(sequences), n, dtype=logits.dtype).scatter(1, sequences, 1.0)
    chosen = logits[sequences]
    before = torch.cat([torch.zeros_like(chosen[:, :1]), chosen.exp().cumsum(1)[:, :-1]], 1)
    return members, (chosen - (logits.exp().sum() - before).log()).sum(1).exp()


def two_laws() -> str:
    """How often each of four elements is among two."""
    logits = torch.tensor([0.3, 0.6, 0.5, 0.2], dtype=torch.float64).logit()
    members, probability = in_turn(logits, 2)
    laws = {
        "exactly 2 (`simple`, `marginals`)": subsets.marginals(logits, 2),
        "2 in turn (`gumbel_topk`)": probability @ members,
    }
    lines = ["| law | element 1 | element 2 | element 3 | element 4 |", "|---|---:|---:|---:|---:|"]
    lines += [f"| {law} | {' | '.join(f'{number:.4f}' for number in numbers)} |" for law, numbers in laws.items()]
    return "\n".join(lines)


def own_law(problem: Problem, options: argparse.Namespace) -> str:
    """The bias of Gumbel top-k against the law that it samples: k drawn in turn, without replacement."""
    lines = ["| estimator | bias, law of `simple` | bias, own law | error |", "|---|---:|---:|---:|"]
    for name in [name for name in problem.contenders if name.startswith("gumbel_topk")]:
        figures: list[tuple[float, ...]] = []
        for seed in range(options.seed, options.seed + options.problems):
            generator = torch.Generator().manual_seed(seed)
            logits = normal(generator, *problem.shape).requires_grad_()
            loss = torch.func.vmap(problem.make(generator, problem.shape))
            members, own = in_turn(logits, K)
            simple = subsets.subset_log_prob(logits, members, K).exp() / math.factorial(K)  # orders of each subset
            exact = [torch.autograd.grad((law * loss(members)).sum(), logits)[0] for law in (simple, own)]
            copies = logits.detach().expand(options.samples, -1).clone().requires_grad_()
            sample = problem.contenders[name](copies, K, generator=generator)
            found = torch.autograd.grad(loss(sample).sum(), copies)[0]
            error = (found.var(0).sum() / len(found)).sqrt() / exact[1].norm()
            figures.append((*(float((found.mean(0) - g).norm() / g.norm()) for g in exact), float(error)))
        cells = [f"`{name}`", *(f"{mean(column):.3f}" for column in zip(*figures, strict=True))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000, help="gradients of each estimator in each problem")
    parser.add_argument("--problems", type=int, default=10, help="problems that are averaged over")
    parser.add_argument("--seed", type=int, default=0, help="of the first problem; the others follow")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw bias against std in the first quadratic problem"
    )
    options = parser.parse_args(argv)
    if options.samples < 2 or options.problems < 1:
        parser.error("--samples must be at least 2 and --problems at least 1")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    torch.set_num_threads(1)
    started = time.perf_counter()
    parts = []
    for problem in PROBLEMS.values():
        found = reports(problem, options)
        parts += [f"### {problem.title}", table(found)]
        if options.plot is not None and problem is PROBLEMS["quadratic"]:
            options.plot.parent.mkdir(parents=True, exist_ok=True)
            found[0].plot(options.plot)
    parts += ["### Two laws of 2 of 4", two_laws()]
    parts += ["### Gumbel top-k against its own law", own_law(PROBLEMS["k of n"], options)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    print(f"{options.problems} problems, {options.samples} gradients each, seed {options.seed}, torch "
          f"{torch.__version__}; {time.perf_counter() - started:.0f} s", file=sys.stderr)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
