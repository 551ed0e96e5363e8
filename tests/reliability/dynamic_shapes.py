"""torch.compile with shapes that change: how often each public layer is compiled, and whether its numbers stay right.

    python -m tests.reliability.dynamic_shapes
    python -m tests.reliability.dynamic_shapes --layer dl.sort

Each layer is compiled with fullgraph=True and called, with its gradient, on rows of four different shapes. The first
shape is compiled as it is, the second one makes the sizes symbols, and the others are to need no compilation more: two
in all. A layer that cannot be traced must say so in a sentence of its own.
"""

from __future__ import annotations

import argparse
import inspect
import math
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import difflayers as dl
from difflayers import _random
from tests.reliability.public_calls import PROJECTIONS

SHAPES = ((3, 6), (5, 7), (4, 9), (6, 12))


def layers() -> dict[str, Callable[[Tensor], Tensor]]:
    """The public functional layers of one tensor [rows, n], their other arguments at their defaults."""
    own: dict[str, Callable[[Tensor], Tensor]] = {
        "dl.sort": dl.sort,
        "dl.sort hard": lambda x: dl.sort(x, hard=True),
        "dl.permutation": dl.permutation,
        "dl.rank": dl.rank,
        "dl.topk": lambda x: dl.topk(x, 2).membership,
        "dl.sort_by": lambda x: dl.sort_by(x, x.unsqueeze(-1) ** 2),
        "dl.quantile": lambda x: dl.quantile(x, 0.3),
        "dl.median": dl.median,
        "dl.losses.SpearmanLoss": lambda x: dl.losses.SpearmanLoss()(x, x.detach().argsort(-1).argsort(-1) + 1),
        "dl.losses.NDCGLoss": lambda x: dl.losses.NDCGLoss()(x, x.detach().argsort(-1) % 4),
        "dl.losses.PermutationCrossEntropy": lambda x: dl.losses.PermutationCrossEntropy()(x, x.detach().argsort(-1)),
        "dl.losses.TopKCrossEntropy": lambda x: dl.losses.TopKCrossEntropy((0.5, 0.5))(x, x.detach().argmax(-1)),
        "dl.subsets.sample_subset": lambda x: dl.subsets.sample_subset(x, 2),
        "dl.subsets.marginals": lambda x: dl.subsets.marginals(x, 2),
        "dl.subsets.subset_entropy": lambda x: dl.subsets.subset_entropy(x, 2),
        "dl.subsets.subset_log_prob": lambda x: dl.subsets.subset_log_prob(
            x, (x.detach().argsort(-1).argsort(-1) < 2).to(x.dtype), 2
        ),
        "dl.ransac.epipolar_loss": lambda x: dl.ransac.epipolar_loss(
            x[:, :3, None] * x[:, None, 1:4], x.unsqueeze(-1) * torch.linspace(1, 2, 4), limit=1.0
        ),
        "dl.ransac.inlier_cross_entropy": lambda x: dl.ransac.inlier_cross_entropy(x, x.detach() > 0),
    }
    for module, prefix in ((dl.estimators, "dl."), (dl.subsets, "dl.subsets.")):
        for name in module.__all__:
            f = getattr(module, name)
            if not inspect.isfunction(f) or f"{prefix}{name}" in own or name == "expectation":
                continue
            own[f"{prefix}{name}"] = (lambda x, f=f: f(x, 2)) if "k" in inspect.signature(f).parameters else f
    for name in PROJECTIONS:
        f = getattr(dl.surrogates, name)
        own[f"dl.surrogates.{name}"] = (lambda x, f=f: f(x, 1.5)) if "capped" in name else f
    return own


def same_noise() -> None:
    """Noise from a table: what is traced draws other numbers than what is not."""
    table = torch.randint(2**31 - 1, (1 << 16,), generator=torch.Generator().manual_seed(5)).to(torch.int32)
    bits = lambda shape, device=None, generator=None: table[: math.prod(shape)].reshape(shape)  # noqa: E731
    _random.bits = bits
    _random.uniform = lambda shape, **rest: _random.uniform_of(bits(shape), torch.float64)
    _random.normal = lambda shape, *, dtype, **rest: _random.uniform_of(bits(shape), dtype) - 0.5


def compilations(layer: Callable[[Tensor], Tensor]) -> tuple[int, str]:
    """How many graphs were compiled for the four shapes, and what went wrong, if anything did."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for shape in SHAPES:
        x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(shape[1]))
        results = []
        for f in (compiled, layer):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(0)
            try:
                y = f(leaf)
                gradient = torch.autograd.grad(y.square().sum(), leaf)[0] if y.requires_grad else None
            except Exception as error:
                said = [line.strip() for line in str(error).splitlines() if "difflayers" in line and "File" not in line]
                return counter.frame_count, "raises: " + (said or str(error).strip().splitlines() or ["nothing"])[0]
            results.append((y, gradient))
        for actual, expected in zip(*results, strict=True):
            if actual is not None and not torch.allclose(actual, expected, rtol=1e-9, atol=1e-9):
                return counter.frame_count, f"differs at {shape}"
    return counter.frame_count, ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="", help="those whose name begins so")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # torch's own, while tracing
    same_noise()
    wrong = 0
    print(f"{'layer':<44}{'shapes':>7}{'compiled':>9}  result")
    for name, layer in layers().items():
        if name.startswith(options.layer):
            count, problem = compilations(layer)
            wrong += bool(problem) or count > 2
            print(f"{name:<44}{len(SHAPES):>7}{count:>9}  {problem[:120] or 'as without'}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
