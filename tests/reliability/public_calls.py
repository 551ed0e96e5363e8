"""Valid calls of the public functions: for each a function of a list of arguments, and such a list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import difflayers as dl
from tests.reliability.operators import SWAPS, Maker

REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
MODULES = (dl, dl.sorting, dl.estimators, dl.subsets)
ELSEWHERE = ("debug", "build_info", "expectation")  # not functions of tensors
PROJECTIONS = ("project_box", "project_capped_simplex", "project_l1_ball", "project_l2_ball", "project_simplex")
GEOMETRY = ("decompose_essential", "essential_from_pose", "fundamental_from_essential", "recover_pose", "pose_error",
            "epipolar_loss", "inlier_cross_entropy", "auc_exact", "auc_binned", "success_rate")  # fmt: skip


def _rotation(m: Maker, *batch: int) -> Tensor:
    a = m.normal(*batch, 3, 3)
    return torch.linalg.matrix_exp(a - a.mT)


def _values(name: str, m: Maker) -> dict[str, Any]:
    """What each parameter may be, by its name; the set is at dim -1 or -2 of a tensor of one to three dimensions."""
    dtype, n = m.pick(REAL), m.integer(1, 9)
    shape = [m.integer(1, 4) for _ in range(m.integer(0, 2))]
    dim = m.pick((-1, -2)) if shape else -1
    whole = [*shape, n] if dim == -1 else [*shape[:-1], n, shape[-1]]
    x = m.normal(*whole, dtype=dtype)
    keep = [1 if d == len(whole) + dim else size for d, size in enumerate(whole)]
    softness = m.pick((0.7, m.uniform(*keep, dtype=torch.float32).to(dtype) + 0.5))
    k = m.integer(1, n)
    mask = None if name == "permutation_cross_entropy" else m.maybe(m.uniform(*whole) > 0.3)
    ones = torch.arange(n).lt(k).to(dtype).expand(*shape, n)
    return {
        "x": x, "logits": x, "dim": dim, "temperature": softness, "steepness": softness, "k": k,
        "q": m.pick((0.3, m.uniform(2).to(dtype))), "hard": bool(m.integer(0, 1)), "keepdim": bool(m.integer(0, 1)),
        "descending": bool(m.integer(0, 1)), "largest": bool(m.integer(0, 1)), "inverse": bool(m.integer(0, 1)),
        "network": m.pick(("odd_even", "bitonic", "odd_even_merge")), "swap": m.pick(SWAPS),
        "mask": mask, "payload": m.normal(*shape, n, 3, dtype=dtype), "samples": 3,
        "sample_shape": m.pick(((), (2,))), "regularization": m.pick(("l2", "kl")), "generator": None, "gap": 1.0,
        "lower": -0.1, "upper": 1.1, "total": 0.5 * n, "radius": 1.0, "dtype": None,
        "members": ones.movedim(-1, dim),
        "P": m.uniform(*shape, n, n, dtype=dtype), "order": m.normal(*shape, n).argsort(-1), "kind": "binary",
        "reduction": m.pick(("mean", "sum", "none")),
    }  # fmt: skip


def _geometry(name: str, m: Maker) -> dict[str, Any]:
    dtype, batch = m.pick((torch.float32, torch.float64)), [m.integer(1, 3) for _ in range(m.integer(0, 1))]
    rotation, translation = _rotation(m, *batch).to(dtype), m.normal(*batch, 3, dtype=dtype)
    essential = dl.ransac.essential_from_pose(rotation, translation)
    count = m.integer(1, 9)
    inliers = m.uniform(*batch, count) > 0.5
    return {
        "essential": essential, "rotation": rotation, "translation": translation, "true_rotation": rotation,
        "true_translation": translation, "first": torch.eye(3, dtype=dtype), "second": torch.eye(3, dtype=dtype),
        "points": m.normal(*batch, count, 4, dtype=dtype), "models": essential, "limit": 0.5,
        "inliers": inliers, "mask": m.maybe(m.uniform(*batch, count) > 0.2), "distance": "symmetric_epipolar",
        "logits": m.normal(*batch, count, dtype=dtype), "balance": "classes",
        "errors": m.uniform(*batch, count, dtype=dtype) * 20, "thresholds": m.pick((5.0, (5.0, 10.0, 20.0))),
        "bin_width": 5.0,
    }  # fmt: skip


def _call(function: Callable[..., Any], values: Callable[[str, Maker], dict[str, Any]]) -> Callable[[Maker], Any]:
    parameters = inspect.signature(function).parameters
    positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]

    def run(*arguments: Any) -> Any:
        named = dict(zip(parameters, arguments, strict=True))
        return function(*[named.pop(name) for name in positional], **named)

    def make(m: Maker) -> tuple[Callable[..., Any], list[Any]]:
        given = values(function.__name__, m)
        return run, [given[name] for name in parameters]

    return make


def _found() -> dict[str, Callable[[Maker], tuple[Callable[..., Any], list[Any]]]]:
    calls = {}
    for module in MODULES:
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isfunction(function) and name not in ELSEWHERE:
                calls[name] = _call(function, _values)
    for name in PROJECTIONS:
        calls[name] = _call(getattr(dl.surrogates, name), _values)
    for name in GEOMETRY:
        calls[name] = _call(getattr(dl.ransac, name), _geometry)
    return calls


CALLS = _found()
