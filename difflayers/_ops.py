"""The compiled kernels: loading, shapes for tracing, batching rules, gradients. Only this file says torch.ops.

Every operator works on rows: the first dimension of each tensor argument is the batch B, or 1 for
"the same in every row". The fake (shape) and vmap rules rest on that and serve all three operators.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._autograd import differentiable, not_differentiable
from .errors import UnsupportedOperationError


def _library() -> str | None:
    """The compiled library's path; DIFFLAYERS_LIBRARY names another one, say one with sanitizers."""
    spec = importlib.util.find_spec("difflayers._C")
    return os.environ.get("DIFFLAYERS_LIBRARY") or (spec.origin if spec is not None else None)


_path = _library()
COMPILED = _path is not None

if _path is not None:
    torch.ops.load_library(_path)
elif os.environ.get("DIFFLAYERS_REQUIRE_KERNELS") == "1":
    raise ImportError(
        "difflayers: DIFFLAYERS_REQUIRE_KERNELS=1, but the compiled kernels (difflayers._C) are missing; "
        "install with a C++ compiler present: pip install --no-build-isolation -e ."
    )
else:
    warnings.warn(
        "difflayers was installed without its compiled kernels (no C++ compiler was found); everything works "
        "on the slower plain-PyTorch path. Install a compiler (g++ or clang++) and reinstall to get them.",
        stacklevel=3,
    )


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether a kernel of this operator is compiled in for the device (fake and meta tensors count as compiled)."""
    if not COMPILED or device.type == "cpu":
        return COMPILED
    key = {"cuda": "CUDA", "meta": "Meta"}.get(device.type)
    return key is not None and _registered(op, key)


def _registered(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"difflayers::{op}", key)


def row_wise(name: str, fake: Callable[..., Any]) -> Any:
    """The OpOverload of an operator whose tensor arguments are rows, with its shape and batching rules registered.

    Args:
        fake: the operator's arguments -> empty tensors shaped as its results.
    """
    op = getattr(torch.ops.difflayers, name).default
    torch.library.register_fake(op._schema.name, fake)
    torch.library.register_vmap(op._schema.name, lambda info, in_dims, *args: _folded(info, in_dims, op, *args))
    return op


def build_info() -> dict[str, Any]:
    """What is compiled in and which instruction set is in use.

    Returns:
        A dict with "compiled" (bool), "instruction_set" ("baseline", "avx2", "avx512", or None without
        kernels), "instruction_sets" (those that this machine could use), "cuda" (whether CUDA kernels are
        compiled in), "cuda_architectures" (as given to nvcc), "torch" and "python" (versions at run time).

    Example:
        >>> import difflayers as dl
        >>> sorted(dl.build_info())
        ['compiled', 'cuda', 'cuda_architectures', 'instruction_set', 'instruction_sets', 'python', 'torch']
    """
    available, used, architectures = [], None, None
    if COMPILED:
        available, used, architectures = (
            field.split(",") if field else [] for field in torch.ops.difflayers.build_info.default().split(";")
        )
    return {
        "compiled": COMPILED,
        "instruction_set": used[0] if used else None,
        "instruction_sets": available,
        "cuda": COMPILED and _registered("transport", "CUDA"),
        "cuda_architectures": architectures or [],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _folded(info: Any, in_dims: tuple[Any, ...], op: Any, *arguments: Any) -> tuple[Any, Any]:
    """The vmap rule of row-wise operators: fold the new dimension into the rows, run once, unfold."""
    size = info.batch_size
    rows = 1
    for value, at in zip(arguments, in_dims, strict=True):
        if isinstance(value, Tensor):
            rows = max(rows, value.shape[0] if at is None else value.movedim(at, 0).shape[1])
    folded = []
    for value, at in zip(arguments, in_dims, strict=True):
        if not isinstance(value, Tensor) or (at is None and value.shape[0] == 1 and rows != 1):
            folded.append(value)
        else:
            value = value.movedim(at, 0) if at is not None else value.expand(size, *value.shape)
            value = value.expand(size, rows, *value.shape[2:])
            folded.append(value.reshape(size * rows, *value.shape[2:]))
    outputs = op(*folded)
    unfold = lambda out: out.unflatten(0, (size, rows)) if out.shape[0] == size * rows else out  # noqa: E731
    if isinstance(outputs, Tensor):
        return unfold(outputs), 0
    unfolded = tuple(unfold(out) for out in outputs)
    dims = tuple(0 if out is not folded_out else None for out, folded_out in zip(unfolded, outputs, strict=True))
    return unfolded, dims


def _define_transport() -> Any:
    """Wires the three transport operators together: forward, its gradient, the gradient of that."""
    ops = torch.ops.difflayers
    forward, backward, double = (
        ops.transport.default,
        ops.transport_backward.default,
        ops.transport_double_backward.default,
    )

    @torch.library.register_fake("difflayers::transport")
    def _(scores: Any, steepness: Any, payload: Any, what: str, network: str, first: int, last: int, *rest: Any) -> Any:
        rows, n = scores.shape
        wanted = last - first
        shape = {
            "values": lambda: (rows, wanted),
            "matrix": lambda: (rows, wanted, n),
            "carry": lambda: (rows, wanted, payload.shape[2]),
            "carry_transposed": lambda: (rows, n, payload.shape[2]),
        }[what]()
        return scores.new_empty(shape)

    @torch.library.register_fake("difflayers::transport_backward")
    def _(gradient: Any, scores: Any, steepness: Any, payload: Any, *rest: Any) -> Any:
        of_steepness, of_payload = rest[-2:]
        rows = scores.shape[0]
        return (
            scores.new_empty(scores.shape),
            scores.new_empty(rows if of_steepness else 0),
            scores.new_empty((rows, *payload.shape[1:]) if of_payload else (0,)),
        )

    @torch.library.register_fake("difflayers::transport_double_backward")
    def _(h_scores: Any, h_steepness: Any, h_payload: Any, gradient: Any, scores: Any, steepness: Any,
          payload: Any, *rest: Any) -> Any:  # fmt: skip
        rows = scores.shape[0]
        return (
            gradient.new_empty(gradient.shape),
            scores.new_empty(scores.shape),
            scores.new_empty(rows if steepness is not None else 0),
            scores.new_empty((rows, *payload.shape[1:]) if payload is not None else (0,)),
        )

    for op in (forward, backward, double):

        def batched(info: Any, in_dims: Any, *arguments: Any, op: Any = op) -> Any:
            return _folded(info, in_dims, op, *arguments)

        torch.library.register_vmap(op._schema.name, batched)

    run_double = not_differentiable(
        double,
        "the third derivative of a sorting network is not implemented; use difflayers.swaps.Custom, "
        "which runs on the plain-PyTorch path and can be differentiated without limit",
    )

    no_settings = (None,) * 8  # what ... hard take no gradient

    def save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.settings = inputs[4:]
        ctx.set_materialize_grads(False)

    def differentiate_backward(ctx: Any, h_scores: Any, h_steepness: Any, h_payload: Any) -> Any:
        gradient, scores, steepness, payload = ctx.saved_tensors
        if payload is not None and ctx.settings[7]:
            raise UnsupportedOperationError(
                "difflayers: the second derivative of a payload's error-free transport (hard=True of rank, sort_by, "
                "topk's membership) is not implemented; form the matrix with difflayers.permutation and multiply"
            )
        settings, (of_steepness, of_payload) = ctx.settings[:-2], ctx.settings[-2:]
        if not of_steepness:
            h_steepness = None
        if not of_payload:
            h_payload = None
        h_scores = torch.zeros_like(scores) if h_scores is None else h_scores
        of_gradient, of_scores, of_steep, of_load = run_double(
            h_scores, h_steepness, h_payload, gradient, scores, steepness, payload, *settings
        )
        return (
            of_gradient,
            of_scores,
            of_steep if of_steepness else None,
            of_load if of_payload else None,
            *no_settings,
            None,
            None,
        )

    run_backward = differentiable(backward, setup_context=save_backward, backward=differentiate_backward)

    def save_forward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.settings = inputs[3:]

    def differentiate(ctx: Any, gradient: Any) -> Any:
        scores, steepness, payload = ctx.saved_tensors
        _, of_steepness, of_payload = ctx.needs_input_grad[:3]
        what, *rest, hard = ctx.settings
        if of_payload and hard and what == "carry":
            # the exact result is linear in the payload through the exact matrix, not through the relaxed adjoint
            of_payload = False
            of_load = forward_function(scores, steepness, gradient, "carry_transposed", *rest, hard)
        else:
            of_load = None
        of_scores, of_steep, of_carried = run_backward(
            gradient, scores, steepness, payload, *ctx.settings, of_steepness, of_payload
        )
        return (
            of_scores,
            of_steep if of_steepness else None,
            of_carried if of_payload else of_load,
            *no_settings,
        )

    forward_function = differentiable(forward, setup_context=save_forward, backward=differentiate)
    return forward_function


def transport_scratch_bytes(
    scores: Tensor, what: str, network: str, payload: Tensor | None = None, *, of_steepness: bool = False,
    direction: str = "backward",
) -> int:  # fmt: skip
    """Bytes of scratch that one CPU thread takes; direction "forward", "backward" or "double_backward"."""
    which = ("forward", "backward", "double_backward").index(direction)
    last = payload.shape[1] if payload is not None else scores.shape[1]
    return torch.ops.difflayers.transport_scratch_bytes.default(
        scores, payload, what, network, 0, last, of_steepness, which
    )


class _ChoiceKernels:
    """The operators of the estimators; their gradients are wired together in estimators/fused.py."""

    def __init__(self) -> None:
        ops = torch.ops.difflayers
        self.gumbel_softmax = ops.gumbel_softmax.default
        self.gumbel_softmax_backward = ops.gumbel_softmax_backward.default
        self.choose = ops.choose.default
        self.choose_backward = ops.choose_backward.default

        @torch.library.register_fake("difflayers::gumbel_softmax")
        def _(logits: Any, bits: Any, temperature: Any, constant: float, hard: bool) -> Any:
            return torch.empty_like(logits), logits.new_empty(logits.shape if hard else (0,))

        @torch.library.register_fake("difflayers::choose")
        def _(logits: Any, uniform: Any) -> Any:
            return torch.empty_like(logits), torch.empty_like(logits)

        for name in ("gumbel_softmax_backward", "choose_backward"):
            torch.library.register_fake(f"difflayers::{name}", lambda gradient, like, *rest: torch.empty_like(like))


@functools.cache
def choice_kernels() -> _ChoiceKernels:
    """The CPU's estimator kernels; registered at first use."""
    return _ChoiceKernels()


def _define_permutahedron() -> tuple[Any, Any]:
    """Shapes and batching of the projections' two operators; subsets/isotonic.py differentiates them."""
    ops = torch.ops.difflayers
    forward, backward = ops.permutahedron.default, ops.permutahedron_backward.default

    @torch.library.register_fake("difflayers::permutahedron")
    def _(x: Any, *rest: Any) -> Any:
        index = lambda: x.new_empty(x.shape, dtype=torch.int32)  # noqa: E731
        return x.new_empty(x.shape), index(), index()

    @torch.library.register_fake("difflayers::permutahedron_backward")
    def _(gradient: Any, x: Any, *rest: Any) -> Any:
        of_temperature = rest[-1]
        return x.new_empty(x.shape), x.new_empty((x.shape[0], 1 if of_temperature else 0))

    for op in (forward, backward):

        def batched(info: Any, in_dims: Any, *arguments: Any, op: Any = op) -> Any:
            return _folded(info, in_dims, op, *arguments)

        torch.library.register_vmap(op._schema.name, batched)
    return forward, backward


def minimal_solve(sample: Tensor, problem: str, with_condition: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Samples `[B, k, d]` float64 -> models `[B, solutions, parameters]`, counts `[B]`, condition numbers."""
    return torch.ops.difflayers.minimal_solve.default(sample, problem, with_condition)


def minimal_backward(
    gradient: Tensor, models: Tensor, counts: Tensor, sample: Tensor, problem: str, worst: float
) -> Tensor:
    """The gradient by samples of sum(gradient * models)."""
    return torch.ops.difflayers.minimal_backward.default(gradient, models, counts, sample, problem, worst)


def refine_models(
    models: Tensor, points: Tensor, mask: Tensor | None, threshold: Tensor, model: str, loss: str, steps: int
) -> tuple[Tensor, Tensor]:
    """Models `[B, H, parameters]`, points `[B, N, d]`, mask `[B, N]`, threshold `[B]` -> better models, their losses
    `[B, H]`."""
    return torch.ops.difflayers.refine_models.default(models, points, mask, threshold, model, loss, steps)


def _define_scoring() -> tuple[Any, Any]:
    """Shapes of the two scoring operators; ransac/scoring.py differentiates them."""
    ops = torch.ops.difflayers

    @torch.library.register_fake("difflayers::hypothesis_scores")
    def _(models: Any, points: Any, *rest: Any) -> Any:
        return points.new_empty(models.shape[:2])

    @torch.library.register_fake("difflayers::hypothesis_scores_backward")
    def _(gradient: Any, models: Any, points: Any, mask: Any, valid: Any, scale: Any, *rest: Any) -> Any:
        return models.new_empty(models.shape), points.new_empty(points.shape), scale.new_empty(scale.shape)

    return ops.hypothesis_scores.default, ops.hypothesis_scores_backward.default


def _define_refine_models() -> None:
    @torch.library.register_fake("difflayers::refine_models")
    def _(models: Any, *rest: Any) -> Any:
        return models.new_empty(models.shape), models.new_empty(models.shape[:2])


# solutions and parameters of the compiled minimal problems
_MINIMAL = {"essential": (10, 9), "fundamental": (3, 9), "homography": (1, 9), "pose": (4, 12)}


def _define_minimal() -> None:
    @torch.library.register_fake("difflayers::minimal_solve")
    def _(samples: Any, problem: str, with_condition: bool) -> Any:
        count, (solutions, parameters) = samples.shape[0], _MINIMAL[problem]
        conditions = samples.new_empty((count, solutions) if with_condition else (0,))
        counts = samples.new_empty((count,), dtype=torch.int64)
        return samples.new_empty((count, solutions, parameters)), counts, conditions

    @torch.library.register_fake("difflayers::minimal_backward")
    def _(gradient: Any, models: Any, counts: Any, samples: Any, *rest: Any) -> Any:
        return samples.new_empty(samples.shape)


if COMPILED:
    _define_minimal()
    hypothesis_scores, hypothesis_scores_backward = _define_scoring()
    _define_refine_models()
    transport = _define_transport()
    permutahedron, permutahedron_backward = _define_permutahedron()
