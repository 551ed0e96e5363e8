"""Rules of layers: convolutions, norms, pooling, attention, embeddings, reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ._atoms import ALWAYS, NONE, compact, varying
from ._propagate import Labels, Parameters, Propagation, Work, rule
from ._rules import biased, combined, together


def channel_labels(run: Propagation, x: Labels, dim: int) -> Tensor:
    """The label of each index of one dimension `[size]`; all elements of an index exist together."""
    dim %= len(x.shape)
    (small,) = compact(x.atoms.movedim(dim, 0))
    flat = small.reshape(small.shape[0], -1)
    first = flat[:, 0] if flat.shape[1] == 1 else flat.amax(1)
    if flat.shape[1] > 1:
        run.atoms.tie(flat, first.unsqueeze(1).expand_as(flat))
    return first.expand(x.shape[dim]) if first.numel() == 1 else first


def along(labels: Tensor, dim: int, shape: Any) -> Tensor:
    """Labels `[size]` spread over a shape."""
    return labels.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(tuple(shape))


def whole_parameter(run: Propagation, weight: Any) -> tuple[str, tuple[int, ...]] | None:
    """The name and shape of a parameter that is used as it is."""
    if isinstance(weight, Parameters) and len(weight.sources) == 1:
        name, source = weight.sources[0]
        places = run.places[name]
        if source is places or (source.shape == places.shape and torch.equal(source, places)):
            return name, run.atoms.shapes[name]
    return None


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """w [O, I / groups, ...]. With groups: each keeps as many channels as the others, or is one channel."""
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("bias")
    transposed = bool(args[6]) if _name(node) == "convolution" else False
    groups = args[8] if _name(node) == "convolution" else (args[6] if len(args) > 6 else kwargs.get("groups", 1))
    return _convolved(run, node, x, weight, bias, groups, transposed)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """w [I, O / groups, ...]."""
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
    return _convolved(run, node, args[0], args[1], bias, groups, True)


def _convolved(run: Propagation, node: fx.Node, x: Any, weight: Any, bias: Any, groups: int, transposed: bool) -> Any:
    whole = whole_parameter(run, weight)
    if whole is None or not isinstance(x, Labels):
        run.refuse(node, [x, weight, bias])
        return run.fixed(node)
    name, shape = whole
    out = node.meta["val"].shape
    channel = 1 if len(x.shape) == len(shape) else 0
    inputs = channel_labels(run, x, channel)
    labelled = bool((inputs > ALWAYS).any())
    first, second = run.atoms.of_dimension[name, 0], run.atoms.of_dimension[name, 1]
    size_in = x.shape[channel]
    if groups == 1:
        of_input, of_output, dim = (first, second, 0) if transposed else (second, first, 1)
        if labelled:
            run.atoms.tie(inputs, of_input)
            run.consumers.add((name, dim))
        else:
            run.atoms.keep(of_input)
        outputs, factors = of_output, (of_input, of_output)
    elif size_in == groups and not transposed:
        # depthwise: a channel goes in and comes out `multiplier` times
        outputs, factors = first, (first,)
        run.atoms.tie(inputs.repeat_interleave(shape[0] // groups), first)
        run.atoms.keep(second)
    elif size_in == groups and shape[1] == 1:
        outputs, factors = first, (first,)
        run.atoms.tie(inputs, first)
    else:
        # every group keeps the same places, so that the groups stay of one size
        per_in, of_in, of_out = (
            (size_in // groups, first, second) if transposed else (shape[1], second, first)
        )  # fmt: skip
        grid = inputs.view(groups, per_in)
        if transposed:
            run.atoms.tie(of_in.view(groups, per_in), of_in[:per_in].expand(groups, -1))
            of_in = of_in[:per_in]
            outputs = of_out.repeat(groups)
            dim = 0
        else:
            run.atoms.tie(of_out.view(groups, -1), of_out[: shape[0] // groups].expand(groups, -1))
            outputs, dim = of_out, 1
        if labelled:
            run.atoms.tie(grid, of_in.expand(groups, -1))
            run.consumers.add((name, dim))
        else:
            run.atoms.keep(of_in)
        factors = (of_in, of_out)
    macs = float(torch.Size(out).numel()) * torch.Size(shape[1:]).numel()
    if transposed:
        macs = float(torch.Size(x.shape).numel()) * torch.Size(shape[1:]).numel()
    run.work.append(Work(macs, factors, node.name))
    return biased(run, Labels(along(outputs, channel, out)), bias, channel)


@rule("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "instance_norm")
def batch_norm(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Every channel by itself."""
    x = args[0]
    if not isinstance(x, Labels):
        run.refuse(node, args)
        return run.fixed(node)
    result = x
    for part in args[1:5]:
        result = biased(run, result, part, 1)
    return [result] if _name(node).startswith("_native") else result


@rule("group_norm", "native_group_norm")
def group_norm(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """A group's channels share their statistics: they exist together."""
    x = args[0]
    if _name(node) == "native_group_norm" or not isinstance(x, Labels):
        run.refuse(node, args)
        return run.fixed(node)
    labels = channel_labels(run, x, 1)
    grid = labels.view(args[1], -1)
    run.atoms.tie(grid, grid[:, :1].expand_as(grid))
    result = Labels(along(labels, 1, x.shape))
    for part in args[2:4]:
        result = biased(run, result, part, 1)
    return result


@rule("layer_norm", "rms_norm", "native_layer_norm")
def layer_norm(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Statistics over the last dimensions: removing what they are taken over changes them."""
    x, normalised = args[0], len(args[1])
    if not isinstance(x, Labels):
        run.refuse(node, args)
        return run.fixed(node)
    rank = len(x.shape)
    over = varying(x.atoms)
    inner = [d for d in over if d >= rank - normalised]
    if inner and len(inner) < len(over):  # of each head by itself
        x = Labels(together(run, x.atoms, inner))
    elif inner:
        if run.allow_inexact and normalised == 1 and _name(node) in ("layer_norm", "rms_norm"):
            run.inexact.append((x.atoms, node))
        else:
            x = Labels(run.kept(x.atoms))
    parts = [a for a in [*args[2:4], *kwargs.values()] if isinstance(a, Parameters)]
    result = combined(run, [x, *parts])
    return [result, run.fixed(node)[1], run.fixed(node)[2]] if _name(node) == "native_layer_norm" else result


@rule(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool2d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "grid_sampler",
)  # fmt: skip
def pooling(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Acts within each channel, dimension 1 (0 without a batch)."""
    x = args[0]
    value = node.meta["val"]
    first = value if isinstance(value, Tensor) else value[0]
    spatial = int(next((c for c in _name(node) if c.isdigit()), "2"))
    dim = len(x.shape) - spatial - 1
    labels = channel_labels(run, x, dim)
    result = Labels(along(labels, dim, first.shape))
    return result if isinstance(value, Tensor) else [result] + [result for _ in value[1:]]


@rule("pad", "constant_pad_nd")
def pad(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """New places belong to the channel that they are in; new channels exist always, for the code says how many."""
    x, widths = args[0], list(args[1])
    if not isinstance(x, Labels):
        run.refuse(node, args)
        return run.fixed(node)
    labels = x.atoms
    channels = varying(labels)
    for i in range(0, len(widths), 2):
        dim, size = labels.dim() - 1 - i // 2, labels.shape[labels.dim() - 1 - i // 2]
        at = torch.arange(-widths[i], size + widths[i + 1])
        if dim not in channels:
            labels = labels.narrow(dim, 0, 1).expand([len(at) if d == dim else n for d, n in enumerate(labels.shape)])
        elif widths[i] or widths[i + 1]:
            if len(args) > 2 and isinstance(args[2], str) and args[2] != "constant":
                run.refuse(node, args)
                return run.fixed(node)
            inside = ((at >= 0) & (at < size)).view([-1 if d == dim else 1 for d in range(labels.dim())])
            labels = torch.where(inside, labels.index_select(dim, at.clamp(0, size - 1)), ALWAYS)
    return Labels(labels)


@rule(
    "sum",
    "mean",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "norm",
    "linalg_vector_norm",
    "logsumexp",
    "argmax",
    "any",
    "all",
    "prod",
)
def reduction(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Over dimensions along which no channels run; else all that is reduced stays, but for means where statistics may
    change: these are of what is open."""
    x = args[0]
    value = node.meta["val"]
    if not isinstance(x, Labels):
        run.keep(args)
        return run.fixed(node)
    numbers = [a for a in args[1:] if isinstance(a, (int, list)) and not isinstance(a, bool)]
    dims = kwargs.get("dim", numbers[-1] if numbers else None)
    dims = (
        list(range(len(x.shape))) if dims is None or dims == [] else ([dims] if isinstance(dims, int) else list(dims))
    )
    dims = [d % len(x.shape) for d in dims]
    if not isinstance(value, Tensor) and _name(node) not in ("max", "min"):
        run.refuse(node, args)
        return run.fixed(node)
    over = varying(x.atoms)
    inner = [d for d in over if d in dims]
    if inner and len(inner) < len(over):  # of each head by itself
        x = Labels(together(run, x.atoms, inner))
    elif inner:
        if run.allow_inexact and _name(node) == "mean" and len(dims) == 1 and "dtype" not in kwargs:
            run.inexact.append((x.atoms.movedim(dims[0], -1), node))  # a norm written by hand
        else:
            run.atoms.keep(x.atoms)
        return run.fixed(node)
    labels = x.atoms.clone() if (x.atoms == NONE).any() else x.atoms
    for d in sorted(dims, reverse=True):
        labels = labels.amax(d, keepdim=True)
    first = value if isinstance(value, Tensor) else value[0]
    if len(first.shape) != len(x.shape):
        for d in sorted(dims, reverse=True):
            labels = labels.squeeze(d)
    return Labels(labels) if isinstance(value, Tensor) else [Labels(labels), Labels(labels)]


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "glu", "normalize", "sort", "topk", "layer_scale")
def over_dimension(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Mixes along one dimension, which no channels may run along."""
    if _name(node) == "glu":
        return _glu(run, args)
    x = args[0]
    dim = args[1] if len(args) > 1 and isinstance(args[1], int) else kwargs.get("dim", -1)
    if isinstance(x, Labels) and not bool((x.atoms > ALWAYS).any()):
        return run.fixed(node)
    if _name(node) in ("sort", "topk") or not isinstance(x, Labels):
        run.refuse(node, args)
        return run.fixed(node)
    if dim % len(x.shape) in varying(x.atoms):
        return Labels(run.kept(x.atoms))
    return x


def _glu(run: Propagation, args: list[Any]) -> Any:
    dim = args[1] if len(args) > 1 else -1
    first, second = (Labels(part) for part in args[0].atoms.chunk(2, dim))
    return combined(run, [first, second])


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def cat(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Side by side: pieces have the same channels along every other dimension."""
    name, pieces = _name(node), [_as_activation(run, p) if isinstance(p, Parameters) else p.atoms for p in args[0]]
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if name == "stack":
        dim %= pieces[0].dim() + 1
        pieces = [piece.unsqueeze(dim) for piece in pieces]
    elif name in ("hstack", "vstack"):
        if pieces[0].dim() < 2:
            run.refuse(node, args[0])
            return run.fixed(node)
        dim = 1 if name == "hstack" else 0
    dim %= max(piece.dim() for piece in pieces)
    pieces = [piece for piece in pieces if tuple(piece.shape) != (0,)]  # torch allows them among others
    for other in range(pieces[0].dim()):
        if other != dim and any(other in varying(piece) for piece in pieces):
            labels = [channel_labels(run, Labels(piece), other) for piece in pieces]
            for each in labels[1:]:
                run.atoms.tie(labels[0], each)
            first = max(labels, key=lambda each: int(each.max() > ALWAYS))
            pieces = [along(first, other, piece.shape) for piece in pieces]
    return Labels(torch.cat(pieces, dim))


def _as_activation(run: Propagation, part: Parameters) -> Tensor:
    if len(part.sources) != 1:
        run.keep(part)
        return torch.tensor(ALWAYS).expand(part.shape)
    name, source = part.sources[0]
    for d in reversed(range(len(part.shape))):
        if part.shape[d] > 1:
            index = torch.unravel_index(source, run.atoms.shapes[name])
            for dim, at in enumerate(index):
                if bool((at.narrow(d, 0, 1) != at).any()):
                    return run.atoms.of_dimension[name, dim][at]
    return torch.tensor(ALWAYS).expand(part.shape)


@rule("index_select")
def index_select(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Rows of a dimension along which no channels run."""
    x, dim = args[:2]
    if not isinstance(x, Labels) or dim % len(x.shape) in varying(x.atoms):
        run.refuse(node, args)
        return run.fixed(node)
    out = node.meta["val"].shape
    return Labels(x.atoms.narrow(dim, 0, 1).expand(out))


@rule("embedding")
def embedding(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Rows of w [entries, channels]."""
    whole = whole_parameter(run, args[0])
    out = node.meta["val"].shape
    if whole is None:
        run.refuse(node, args)
        return run.fixed(node)
    run.atoms.keep(run.atoms.of_dimension[whole[0], 0])
    return Labels(along(run.atoms.of_dimension[whole[0], 1], len(out) - 1, out))


@rule("scaled_dot_product_attention")
def attention(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """q, k, v `[.., heads, length, size]`: a head exists as a whole, with the queries that share its keys."""
    q, k, v = args[:3]
    out = node.meta["val"].shape
    if not all(isinstance(each, Labels) for each in (q, k, v)):
        run.refuse(node, args)
        return run.fixed(node)
    heads = tuple(out[:-2])
    shared = q.shape[-3] // k.shape[-3] if len(q.shape) > 2 else 1
    parts = []
    for each, repeats in ((q, 1), (k, shared), (v, shared)):
        labels = each.atoms.repeat_interleave(repeats, -3) if repeats > 1 else each.atoms
        parts.append(labels.expand(*heads, *labels.shape[-2:]))
    head = torch.maximum(torch.maximum(*(p[..., 0, 0] for p in parts[:2])), parts[2][..., 0, 0])[..., None, None]
    for part in parts:
        run.atoms.tie(part, head.expand(part.shape))
    macs = float(torch.Size(out[:-1]).numel()) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    run.work.append(Work(macs, (head.flatten(),), node.name))
    return Labels(head.expand(out))


@rule(
    "zeros", "ones", "full", "empty", "arange", "rand", "randn", "new_zeros", "new_ones", "new_full", "scalar_tensor",
    "linspace", "eye", "tril", "triu", "full_like", "rand_like", "randn_like", "one_hot", "_assert_async", "sym_size",
    "_assert_tensor_metadata", "bernoulli", "meshgrid",
)  # fmt: skip
def constant(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Made of nothing that can be removed (what it was made of is kept)."""
    run.keep([a for a in args if isinstance(a, Labels) and bool((a.atoms > ALWAYS).any())])
    return run.fixed(node)


def _name(node: fx.Node) -> str:
    from ._propagate import operator_name

    return operator_name(node)
