"""Whether a smaller model's graph is the dense model's, with the sizes that it should have."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from ._analysis import Trace
from ._branches import closed_parts
from ._propagate import operator_name
from ._record import Bare, Recorded, recorded
from ._rules import BINARY, UNARY
from .attach import Gated
from .prune import _left, _sizes_in_code, cut, staying
from .removed import take_out

__all__ = ["shrinks"]

# Operators that do to what is left of their inputs what they do to all of them, if their other arguments are the same:
# they count no channels and pick none by its place.
PLAIN = {
    *UNARY, *BINARY, "linear", "addmm", "matmul", "mm", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "batch_norm", "layer_norm", "embedding", "max_pool1d", "max_pool2d",
    "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
    "adaptive_avg_pool3d", "upsample_nearest2d", "upsample_bilinear2d", "permute", "transpose", "t", "numpy_T", "mT",
    "flatten", "unsqueeze", "squeeze", "cat", "chunk", "unbind", "getitem", "scaled_dot_product_attention", "softmax",
    "mean", "sum",
}  # fmt: skip
# and those whose other arguments are the sizes of what they make
SIZED = {"view", "reshape", "_unsafe_view", "unflatten", "expand"}


def shrinks(gated: Gated, trace: Trace, opened: dict[str, Tensor]) -> bool:
    """Whether the model without what is closed runs the operators of the dense model, and all tensors have the sizes
    that follow from what is closed; then the removal is right by what each operator is. False: nothing is known.

    Both are compared without data, so this costs no arithmetic.
    """
    kept = staying(gated, opened)

    def small_by(rewrite: bool) -> Recorded:
        def copied(model: nn.Module, bare: Bare) -> nn.Module:
            def shorten(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
                return bare(tensor, [len(dims[d]) if d in dims else n for d, n in enumerate(tensor.shape)])

            others = {id(t): bare(t, t.shape) for t in (*model.parameters(), *model.buffers())}
            small = cut(model, kept, shorten, others)
            take_out(small, closed_parts(gated.groups, opened))
            if rewrite:
                for module, name, size in _sizes_in_code(gated, small, opened):
                    setattr(module, name, size)
            return small.eval()

        return recorded(gated.model, *gated.example, copied=copied)

    for rewrite in (True, False):
        try:
            if _same(trace, small_by(rewrite), opened):
                return True
        except Exception:  # of the model's own code, most often: a size that does not fit
            continue
    return False


def _same(trace: Trace, small: Recorded, opened: dict[str, Tensor]) -> bool:
    dense = trace.recorded
    twin: dict[fx.Node, fx.Node] = {}
    if len(dense.graph.nodes) != len(small.graph.nodes):
        return False
    for first, second in zip(dense.graph.nodes, small.graph.nodes, strict=True):
        twin[first] = second
        if first.op == "placeholder":
            if second.op != "placeholder" or dense.names.get(first.name) != small.names.get(second.name):
                return False
            continue
        if first.op != second.op or (first.op == "call_function" and first.target is not second.target):
            return False
        name = operator_name(first) if first.op == "call_function" else "getitem"
        if {first, *first.all_input_nodes} & trace.touched and name not in PLAIN and name not in SIZED:
            return False
        for one, other in ((first.args, second.args), (first.kwargs, second.kwargs)):
            if not _alike(one, other, twin, sizes=name in SIZED):
                return False
        if first.op == "call_function" and not _as_large(first, second, trace, opened):
            return False
    return True


def _as_large(first: fx.Node, second: fx.Node, trace: Trace, opened: dict[str, Tensor]) -> bool:
    value, found = first.meta["val"], second.meta["val"]
    if not isinstance(value, Tensor):
        return True  # its parts are nodes as well
    shape = list(value.shape)
    for d, factor in trace.sizes.get(first, []):
        shape[d] = _left(factor, opened)
    return list(found.shape) == shape and value.dtype == found.dtype


def _alike(first: Any, second: Any, twin: dict[fx.Node, fx.Node], *, sizes: bool) -> bool:
    """The same arguments, nodes for nodes; with `sizes`, integers may differ."""
    if isinstance(first, fx.Node):
        return twin.get(first) is second
    if isinstance(first, (list, tuple)):
        return (
            isinstance(second, (list, tuple))
            and len(first) == len(second)
            and all(_alike(a, b, twin, sizes=sizes) for a, b in zip(first, second, strict=True))
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_alike(first[k], second[k], twin, sizes=sizes) for k in first)
    if sizes and type(first) is int and type(second) is int:
        return True
    return type(first) is type(second) and first == second
