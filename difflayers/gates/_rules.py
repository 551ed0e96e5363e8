"""What operators that compute do to labels; everything not here and not mere data movement is unknown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ._atoms import ALWAYS, NONE, compact, varying
from ._propagate import Labels, Parameters, Propagation, Work, rule

UNARY = (
    "relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "exp", "exp2", "expm1", "log", "log1p", "log2", "neg", "abs",
    "sqrt",
    "rsqrt", "square", "reciprocal", "sin", "cos", "erf", "clamp", "clamp_min", "clamp_max", "hardtanh", "hardswish",
    "hardsigmoid", "leaky_relu", "elu", "selu", "celu", "softplus", "mish", "softsign", "logsigmoid", "log_sigmoid",
    "tanhshrink", "hardshrink", "softshrink", "threshold", "dropout", "feature_dropout", "alpha_dropout", "contiguous",
    "clone", "detach", "alias", "to", "_to_copy", "type_as", "float", "half", "double", "bool", "round", "floor",
    "ceil",
    "sign", "logical_not", "bitwise_not", "rrelu", "lift_fresh_copy", "nan_to_num", "isnan", "sgn", "ones_like",
    "zeros_like",
)  # fmt: skip
BINARY = (
    "add", "sub", "mul", "div", "maximum", "minimum", "pow", "where", "masked_fill", "addcmul", "addcdiv", "lerp", "eq",
    "ne",
    "gt", "ge", "lt", "le", "rsub", "true_divide", "multiply", "divide", "subtract", "prelu", "logical_and",
    "logical_or",
    "floor_divide", "remainder", "atan2", "fmod",
)  # fmt: skip


@rule(*UNARY)
def unary(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Elementwise, of one tensor."""
    return args[0]


@rule(*BINARY)
def elementwise(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Elements of the same position exist together."""
    operands = [a for a in [*args, *kwargs.values()] if isinstance(a, (Labels, Parameters))]
    if node.target is torch.ops.aten.prelu.default and isinstance(operands[1], Parameters):
        name, source = operands[1].sources[0]  # one weight a channel, dimension 1
        shape = (-1,) + (1,) * (len(operands[0].shape) - 2)
        operands[1] = Parameters(((name, source.view(shape) if len(operands[0].shape) > 1 else source),))
    return combined(run, operands)


def combined(run: Propagation, operands: list[Any]) -> Any:
    """The broadcast of operands, elements of the same position tied."""
    shape = torch.broadcast_shapes(*[o.shape for o in operands])
    acts = [o for o in operands if isinstance(o, Labels)]
    params = [o for o in operands if isinstance(o, Parameters)]
    if not acts:
        return Parameters(tuple((name, source.expand(shape)) for p in params for name, source in p.sources))
    if len(acts) == 1 and not params:
        return acts[0]
    pieces = compact(*[act.atoms.expand(shape) for act in acts])
    result = torch.tensor(NONE).expand(pieces[0].shape)
    for labels in pieces:  # what always exists, or says nothing, ties nothing here
        run.atoms.tie(torch.where(labels == ALWAYS, NONE, labels), torch.where(result == ALWAYS, NONE, result))
        result = _merged(result, labels)
    over = varying(result)
    for act, labels in zip(acts, pieces, strict=True):
        # present everywhere, and of more than one number along the labels: those cannot be taken from it
        padded = (1,) * (len(shape) - len(act.shape)) + tuple(act.shape)
        inner = [d for d in over if padded[d] > 1]
        if inner and len(inner) < len(over) and bool((act.atoms == ALWAYS).all()):
            result = together(run, result, inner)  # rotations of a head: the same for all heads
            over = varying(result)
        elif inner:
            whole = labels == ALWAYS
            run.atoms.keep(torch.where(whole, result, NONE))
            result = (
                result.new_tensor(ALWAYS).expand(pieces[0].shape)
                if bool(whole.all())
                else torch.where(whole, ALWAYS, result)
            )
    result = result.expand(shape)
    over = varying(result)
    for param in params:
        padded = (1,) * (len(shape) - len(param.shape)) + tuple(param.shape)
        inner = [d for d in over if padded[d] > 1]
        if inner and len(inner) < len(over):
            result = together(run, result, inner)
            over = varying(result)
            run.keep(param)
            continue
        expanded = Parameters(tuple((name, source.expand(shape)) for name, source in param.sources))
        run.tie_parameter(result, expanded)
    return Labels(result)


def together(run: Propagation, labels: Tensor, dims: list[int]) -> Tensor:
    """The labels where all along these dimensions exists together, as the parts of a head do."""
    one = labels
    for d in dims:
        one = one.amax(d, keepdim=True)
    run.atoms.tie(labels, one.expand(labels.shape))
    return one.expand(labels.shape)


def _merged(first: Tensor, second: Tensor) -> Tensor:
    """The first label that says something: an atom before ALWAYS before NONE."""
    shape = first.shape
    small, other = compact(first, second)
    return torch.where(small > ALWAYS, small, torch.maximum(small, other)).expand(shape)


@rule("linear")
def linear(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """y[.., o] = x[.., i] w[o, i] + b[o]."""
    x, weight, bias = (*args, None, None)[:3] if len(args) < 3 else args[:3]
    result = product(run, node, x, weight, "...i,oi->...o")
    return biased(run, result, bias if bias is not None else kwargs.get("bias"), -1)


@rule("addmm")
def addmm(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """b + x w."""
    return biased(run, product(run, node, args[1], args[2], "...i,io->...o"), args[0], -1)


@rule("matmul", "mm", "bmm")
def matmul(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """a[.., i, k] b[.., k, j], by what is a parameter."""
    first, second = args
    if isinstance(first, Labels) and isinstance(second, Labels):
        if min(len(first.shape), len(second.shape)) < 2:
            run.refuse(node, args)
            return run.fixed(node)
        return between(run, node, first, second)
    if isinstance(second, Parameters) and len(second.shape) == 2:
        return product(run, node, first, second, "...i,io->...o")
    if isinstance(first, Parameters) and len(first.shape) == 2 and len(second.shape) >= 2:
        return product(run, node, second, first, "...ij,oi->...oj")
    run.refuse(node, args)
    return run.fixed(node)


@rule("einsum")
def einsum(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Of an activation and a parameter; of two activations where it is a batched matrix product."""
    equation, operands = args[0].replace(" ", ""), list(args[1])
    if len(operands) == 2 and "->" in equation and "..." not in equation:
        left, out = equation.split("->")
        letters = left.split(",")
        if isinstance(operands[0], Labels) and isinstance(operands[1], Parameters):
            return product(run, node, operands[0], operands[1], f"{letters[0]},{letters[1]}->{out}")
        if isinstance(operands[1], Labels) and isinstance(operands[0], Parameters):
            return product(run, node, operands[1], operands[0], f"{letters[1]},{letters[0]}->{out}")
        if all(isinstance(o, Labels) for o in operands):
            result = _batched(run, node, operands, letters, out)
            if result is not None:
                return result
    run.refuse(node, operands)
    return run.fixed(node)


def _batched(run: Propagation, node: fx.Node, operands: list[Labels], letters: list[str], out: str) -> Labels | None:
    """Two activations: shared letters that stay are batch, shared ones that go are contracted."""
    shared = [c for c in letters[0] if c in letters[1]]
    batch, inner = [c for c in shared if c in out], [c for c in shared if c not in out]
    rows, columns = ([c for c in part if c not in shared] for part in letters)
    if any(c not in out for c in rows + columns) or len(set(out)) != len(out):
        return None
    moved = []
    for operand, part, order in zip(operands, letters, ([batch, rows, inner], [batch, inner, columns]), strict=True):
        turned = operand.atoms.permute([part.index(c) for group in order for c in group])
        sizes = [int(torch.Size([operand.shape[part.index(c)] for c in group]).numel()) for group in order]
        moved.append(Labels(turned.reshape(sizes)))
    result = between(run, node, *moved).atoms
    size = {c: operands[i].shape[part.index(c)] for i, part in enumerate(letters) for c in part}
    ordered = batch + rows + columns
    return Labels(result.reshape([size[c] for c in ordered]).permute([ordered.index(c) for c in out]))


def product(run: Propagation, node: fx.Node, x: Any, weight: Any, equation: str) -> Any:
    """A contraction of an activation x with a parameter: inputs are tied to the parameter's, outputs are its own."""
    if not isinstance(x, Labels) or not isinstance(weight, Parameters) or len(weight.sources) != 1:
        run.refuse(node, [x, weight])
        return run.fixed(node)
    left, out = equation.split("->")
    of_x, of_weight = left.split(",")
    lead = "ABCDEFGH"[: len(x.shape) - len(of_x.replace("...", ""))] if "..." in of_x else ""
    of_x, out = of_x.replace("...", lead), out.replace("...", lead)
    name, source = weight.sources[0]
    dims = [_parameter_dim(run, name, source, i) for i in range(len(of_weight))]
    if None in dims:  # a parameter reshaped across its dimensions
        run.refuse(node, [x, weight])
        return run.fixed(node)
    atoms = {c: _atoms_along(run, name, source, i, d) for i, (c, d) in enumerate(zip(of_weight, dims, strict=True))}
    size = {c: x.shape[i] for i, c in enumerate(of_x)} | {c: source.shape[i] for i, c in enumerate(of_weight)}
    shape = [size[c] for c in out]
    over = {of_x[d] for d in varying(x.atoms)}
    shared = [c for c in of_weight if c in of_x]
    macs = float(torch.Size(shape).numel()) * torch.Size([size[c] for c in shared if c not in out]).numel()
    run.work.append(Work(macs, tuple(atoms.values()), node.name))
    if over and not over & set(shared):
        # the channels of x run along a dimension that stays: they are the result's, and the parameter stays whole
        for each in atoms.values():
            run.atoms.keep(each)
        return Labels(_rearranged(x.atoms, of_x, out).expand(shape))
    for c, dim in zip(of_weight, dims, strict=True):
        if c in shared and c in over:
            run.atoms.tie(x.atoms, _spread(atoms[c], c, of_x).expand(x.shape))
            if c not in out:
                run.consumers.add((name, int(dim or 0)))
        elif c in shared:
            run.atoms.keep(atoms[c])
    # the label of the result: of the shared dimension that stays, else of the first new one; the others stay whole
    fresh = [c for c in of_weight if c not in of_x]
    leading = ([c for c in shared if c in over and c in out] + fresh)[:1]
    for c in fresh:
        if c not in leading:
            run.atoms.keep(atoms[c])
    result = _spread(atoms[leading[0]], leading[0], out) if leading else torch.tensor(ALWAYS)
    return Labels(result.expand(shape))


def _spread(atoms: Tensor, letter: str, letters: str) -> Tensor:
    return atoms.view([-1 if c == letter else 1 for c in letters])


def _rearranged(labels: Tensor, letters: str, out: str) -> Tensor:
    """Labels with the dimensions of `out`: those that go are dropped, new ones have size 1."""
    for d in reversed(range(len(letters))):
        if letters[d] not in out:
            labels = labels.select(d, 0)
    kept = [c for c in letters if c in out]
    labels = labels.permute([kept.index(c) for c in out if c in kept])
    for position, c in enumerate(out):
        if c not in kept:
            labels = labels.unsqueeze(position)
    return labels


def permuted(run: Propagation, name: str, source: Tensor) -> bool:
    """Whether this is the whole parameter with its dimensions in any order: a view of its own places, all of them."""
    if source.untyped_storage().data_ptr() != run.places[name].untyped_storage().data_ptr() or source.storage_offset():
        return False
    return _steps(source) == _steps(run.places[name])


def _steps(source: Tensor) -> list[tuple[int, int]]:
    return sorted((n, step) for n, step in zip(source.shape, source.stride(), strict=True) if n > 1)


def _parameter_dim(run: Propagation, name: str, source: Tensor, at: int) -> int | None:
    """The dimension of the parameter that dimension `at` of `source` runs along; None if it is not one alone."""
    shape = run.atoms.shapes[name]
    if source.shape[at] > 1 and permuted(run, name, source):  # no need to look at every element
        steps = run.places[name].stride()
        return next(d for d, size in enumerate(shape) if size > 1 and steps[d] == source.stride(at))
    if source.shape[at] == 1:
        return next((d for d, size in enumerate(shape) if size == 1), None)
    index = torch.unravel_index(source.transpose(0, at).flatten(1), shape)
    moving = [d for d, i in enumerate(index) if bool((i[:1] != i).any())]
    whole = len(moving) == 1 and bool((index[moving[0]][:, :1] == index[moving[0]]).all())
    return moving[0] if whole else None


def _atoms_along(run: Propagation, name: str, source: Tensor, at: int, dim: int | None) -> Tensor:
    """The atoms of the parameter's indices along dimension `at` of `source`."""
    index = torch.unravel_index(
        source.transpose(0, at)[(slice(None), *[0] * (source.dim() - 1))], run.atoms.shapes[name]
    )
    return run.atoms.of_dimension[name, int(dim or 0)][index[int(dim or 0)]]


def biased(run: Propagation, result: Any, bias: Any, dim: int) -> Any:
    """The result with a bias along a dimension."""
    if isinstance(bias, Parameters):
        if _whole_vector(run, result, bias, dim):  # most often
            run.atoms.tie(compact(result.atoms)[0].reshape(-1), run.atoms.of_dimension[bias.sources[0][0], 0])
            return result
        shape = [1] * len(result.shape)
        shape[dim] = -1
        return combined(run, [result, Parameters(tuple((n, s.reshape(shape)) for n, s in bias.sources))])
    return result


def _whole_vector(run: Propagation, result: Any, bias: Parameters, dim: int) -> bool:
    """Whether a parameter `[size]` meets labels that run along one dimension alone, all of it."""
    name, source = bias.sources[0]
    if not isinstance(result, Labels) or source is not run.places[name] or source.dim() != 1:
        return False
    (small,) = compact(result.atoms)
    return len(source) > 1 and small.shape[dim] == small.numel() == len(source)


def between(run: Propagation, node: fx.Node, first: Labels, second: Labels) -> Labels:
    """A batched matrix product of activations `[.., i, k]`, `[.., k, j]`.

    If both have labels, all of one slice of the batch exist together: the heads of attention. If one has none, the
    other keeps its own along the dimension that stays.
    """
    a, b = first.atoms, second.atoms
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    macs = float(torch.Size(shape).numel()) * a.shape[-1]
    labelled = [bool((x > ALWAYS).any()) for x in (a, b)]
    if all(labelled):
        a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
        head = torch.maximum(a[..., :1, :1], b[..., :1, :1])
        for x in (a, b):
            run.atoms.tie(x, torch.where(head > ALWAYS, head, ALWAYS).expand(x.shape))
        run.work.append(Work(macs, (head.flatten(),), node.name))
        return Labels(head.expand(shape))
    run.work.append(Work(macs, (), node.name))
    if not any(labelled):
        return Labels(torch.tensor(ALWAYS).expand(shape))
    x, inner = (a, -1) if labelled[0] else (b, -2)
    if x.dim() + inner in varying(x):
        run.atoms.keep(x)
        return Labels(torch.tensor(ALWAYS).expand(shape))
    return Labels(x.narrow(inner, 0, 1).expand(shape))
