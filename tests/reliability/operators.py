"""A valid call of every compiled operator, by name: what fuzzing, the leak check and the thread checks start from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import difflayers  # noqa: F401 (loads the operators)

ROOT = Path(__file__).resolve().parent.parent.parent
NETWORKS = ("odd_even", "bitonic", "odd_even_merge", "4:0-1,2-3,0-2,1-3,1-2")
SWAPS = ("logistic", "logistic_art", "gaussian", "reciprocal", "cauchy", "optimal")
RESIDUALS = {
    "sampson": (9, 4), "symmetric_epipolar": (9, 4), "transfer": (9, 4), "symmetric_transfer": (9, 4), "line": (3, 2),
    "plane": (4, 3), "circle": (3, 2), "rigid": (12, 6), "reprojection": (12, 5),
}  # fmt: skip
MINIMAL = {"essential": (5, 4), "fundamental": (7, 4), "homography": (4, 4), "pose": (3, 5)}
REFINED = {
    "line": (3, 2), "plane": (4, 3), "circle": (3, 2), "rigid": (12, 6), "homography": (9, 4), "essential": (9, 4),
    "fundamental": (9, 4), "pose": (12, 5), "similarity": (12, 6),
}  # fmt: skip

Call = tuple[str, list[Any]]


class Maker:
    """Random arguments from one seed."""

    def __init__(self, seed: int, size: int | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.size = size  # rows and elements; None: small and random

    def integer(self, low: int, high: int) -> int:
        """In [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def pick(self, options: Any) -> Any:
        options = list(options)
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def maybe(self, value: Any) -> Any:
        return value if self.integer(0, 1) else None

    def rows(self) -> int:
        return self.size or self.integer(1, 20)

    def real(self) -> torch.dtype:
        return self.pick((torch.float32, torch.float64))


def _transport(m: Maker) -> list[Any]:
    dtype, rows, network = m.real(), m.rows(), m.pick(NETWORKS)
    n = 4 if ":" in network else m.size or m.integer(1, 40)
    last = n if m.size else m.integer(0, n)
    first = 0 if m.size else m.integer(0, last)
    what = m.pick(("values", "matrix", "carry", "carry_transposed"))
    length = {"carry": n, "carry_transposed": last - first}.get(what)
    payload = None if length is None else m.normal(m.pick((1, rows)), length, m.integer(1, 20), dtype=dtype)
    steepness = m.maybe(m.uniform(rows, dtype=dtype) + 0.5)
    return [m.normal(rows, n, dtype=dtype), steepness, payload, what, network, first, last, m.pick(SWAPS), 0.25, 3.0,
            bool(m.integer(0, 1))]  # fmt: skip


def _result_shape(call: list[Any]) -> tuple[int, ...]:
    scores, _, payload, what, _, first, last = call[:7]
    rows, n = scores.shape
    if what == "values":
        return rows, last - first
    if what == "matrix":
        return rows, last - first, n
    return rows, last - first if what == "carry" else n, payload.shape[2]


def _transport_backward(m: Maker) -> list[Any]:
    call = _transport(m)
    gradient = m.normal(*_result_shape(call), dtype=call[0].dtype)
    return [gradient, *call, call[1] is not None, call[2] is not None and bool(m.integer(0, 1))]


def _transport_double_backward(m: Maker) -> list[Any]:
    call = _transport(m)
    call[-1] = call[-1] and call[2] is None  # not implemented for payloads
    gradient = m.normal(*_result_shape(call), dtype=call[0].dtype)
    directions = [None if a is None else m.normal(*a.shape, dtype=a.dtype) for a in call[:3]]
    return [*directions, gradient, *call]


def _scratch(m: Maker) -> list[Any]:
    call = _transport(m)
    return [call[0], *call[2:7], bool(m.integer(0, 1)), m.integer(0, 2)]


def _choice(m: Maker) -> tuple[int, int, Tensor | None]:
    rows, n = m.rows(), m.size or m.integer(1, 40)
    return rows, n, m.maybe(m.uniform(rows, 1, dtype=torch.float32) + 0.1)


def _gumbel_softmax(m: Maker) -> list[Any]:
    rows, n, temperature = _choice(m)
    bits = torch.randint(2**31 - 1, (rows, n), generator=m.generator).to(torch.int32)
    return [m.normal(rows, n, dtype=torch.float32), bits, temperature, 0.7, bool(m.integer(0, 1))]


def _gumbel_softmax_backward(m: Maker) -> list[Any]:
    rows, n, temperature = _choice(m)
    soft = m.normal(rows, n, dtype=torch.float32).softmax(-1)
    return [m.normal(rows, n, dtype=torch.float32), soft, temperature, 0.7]


def _choose(m: Maker) -> list[Any]:
    rows, n, _ = _choice(m)
    return [m.normal(rows, n, dtype=torch.float32), m.uniform(rows, 1)]


def _choose_backward(m: Maker) -> list[Any]:
    rows, n, temperature = _choice(m)
    logits, uniform = m.normal(rows, n, dtype=torch.float32), m.uniform(rows, 1)
    marked = torch.ops.difflayers.choose(logits, uniform)[1]
    return [m.normal(rows, n, dtype=torch.float32), marked, temperature, 0.7, m.pick(("straight_through", "reinmax"))]


def _subset(m: Maker) -> tuple[Tensor, int]:
    theta = m.normal(m.rows(), m.size or m.integer(2, 40), dtype=m.real())
    return theta, m.integer(1, theta.shape[1] - 1)


def _subset_marginals(m: Maker) -> list[Any]:
    theta, k = _subset(m)
    g = m.maybe(m.normal(*theta.shape, dtype=theta.dtype))
    return [theta, g, m.maybe(m.normal(*theta.shape, dtype=theta.dtype)) if g is not None else None, k]


def _subset_sample(m: Maker) -> list[Any]:
    theta, k = _subset(m)
    return [theta, m.uniform(theta.shape[0], m.integer(1, 3), theta.shape[1]), k]


def _subset_log_normalizer(m: Maker) -> list[Any]:
    return list(_subset(m))


def _permutahedron(m: Maker) -> list[Any]:
    x = m.normal(m.rows(), m.size or m.integer(1, 40), dtype=m.real())
    temperature = m.maybe(m.uniform(len(x), 1, dtype=x.dtype) + 0.1)
    return [x, temperature, 0.7, m.pick(("rank", "sort", "topk")), bool(m.integer(0, 1)), m.integer(0, x.shape[1])]


def _permutahedron_backward(m: Maker) -> list[Any]:
    x, temperature, constant, task, entropic, k = _permutahedron(m)
    result = torch.ops.difflayers.permutahedron(x, temperature, constant, task, entropic, k)
    gradient = m.normal(*x.shape, dtype=x.dtype)
    return [gradient, x, temperature, *result, constant, task, entropic, temperature is not None]


def _minimal_solve(m: Maker) -> list[Any]:
    problem = m.pick(MINIMAL)
    return [m.normal(m.rows(), *MINIMAL[problem]), problem, bool(m.integer(0, 1))]


def _minimal_backward(m: Maker) -> list[Any]:
    samples, problem, _ = _minimal_solve(m)
    models, counts, _ = torch.ops.difflayers.minimal_solve(samples, problem, False)
    return [m.normal(*models.shape), models, counts, samples, problem, 1e6]


def _refine_models(m: Maker) -> list[Any]:
    model = m.pick(REFINED)
    parameters, coordinates = REFINED[model]
    batch, hypotheses, count = m.integer(1, 3), m.integer(1, 4), m.integer(0, 30)
    mask = m.maybe(m.uniform(batch, count) > 0.3)
    return [m.normal(batch, hypotheses, parameters), m.normal(batch, count, coordinates), mask, m.uniform(batch) + 0.1,
            model, m.pick(("truncated", "cauchy", "gaussian_uniform")), m.integer(1, 8)]  # fmt: skip


def _hypothesis_scores(m: Maker) -> list[Any]:
    residual, dtype = m.pick(RESIDUALS), m.real()
    parameters, coordinates = RESIDUALS[residual]
    batch, hypotheses, count = m.integer(1, 3), m.integer(1, 20), m.size or m.integer(0, 40)
    mask, valid = m.maybe(m.uniform(batch, count) > 0.3), m.maybe(m.uniform(batch, hypotheses) > 0.3)
    return [m.normal(batch, hypotheses, parameters, dtype=dtype), m.normal(batch, count, coordinates, dtype=dtype),
            mask, valid, m.uniform(batch) + 0.1, m.maybe(m.uniform(batch)), residual,
            m.pick(("count", "msac", "gaussian_uniform", "magsac")), 0.8]  # fmt: skip


def _hypothesis_scores_backward(m: Maker) -> list[Any]:
    call = _hypothesis_scores(m)
    del call[5]
    models, points = call[:2]
    return [m.normal(*models.shape[:2], dtype=points.dtype), *call]


CALLS: dict[str, Callable[[Maker], list[Any]]] = {
    "transport": _transport,
    "transport_backward": _transport_backward,
    "transport_double_backward": _transport_double_backward,
    "transport_scratch_bytes": _scratch,
    "emulated_transport": _transport,
    "emulated_transport_backward": _transport_backward,
    "emulated_transport_double_backward": _transport_double_backward,
    "gumbel_softmax": _gumbel_softmax,
    "gumbel_softmax_backward": _gumbel_softmax_backward,
    "choose": _choose,
    "choose_backward": _choose_backward,
    "subset_marginals": _subset_marginals,
    "subset_sample": _subset_sample,
    "subset_log_normalizer": _subset_log_normalizer,
    "permutahedron": _permutahedron,
    "permutahedron_backward": _permutahedron_backward,
    "minimal_solve": _minimal_solve,
    "minimal_backward": _minimal_backward,
    "refine_models": _refine_models,
    "hypothesis_scores": _hypothesis_scores,
    "hypothesis_scores_backward": _hypothesis_scores_backward,
}


def registered() -> set[str]:
    """The operators whose schema is in csrc, those without tensors left out."""
    text = "".join(path.read_text() for path in sorted((ROOT / "csrc").glob("**/*.cpp")))
    names = re.findall(r'library\.def\(\s*"(\w+)\(([^"]*)', text)
    return {name for name, arguments in names if "Tensor" in arguments}


def operator(name: str) -> Callable[..., Any]:
    """The operator, past Python's own gradients."""
    return getattr(torch.ops.difflayers, name).default


class Finding(AssertionError):
    """A case that ended in neither of the allowed ways."""


def same(a: Any, b: Any) -> bool:
    """Whether two results are bit for bit the same, NaN being NaN."""
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
