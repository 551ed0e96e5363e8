"""The removal of closed channels, and the proof that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import Error
from ._analysis import Factor
from ._branches import closed_parts, inside
from ._recurrent import remember_recurrent
from .attach import Gated
from .multihead import SlimMultiheadAttention
from .removed import RemovedBranch, take_out

__all__ = ["PruningError", "prune"]


class PruningError(Error):
    """The pruned model would not compute what the gated one does; nothing was changed."""


class NotRunnable(PruningError):
    """The gated model itself cannot be run in float64."""


def prune(gated: Gated, *, verify: bool = True, tolerance: float = 1e-10) -> nn.Module:
    """The model without the channels whose gates are closed, as an ordinary module.

    Works on a copy: the gated model stays as it is. Parameters and buffers lose the indices of closed units; sizes that
    modules remember (`in_features`, `num_heads`, `groups`, and integers of a user's own modules that reshapes depend
    on) are rewritten. Residual branches whose gate is closed are taken out: `RemovedBranch` stands in their place.

    Args:
        gated: of `attach`; its gates say what is closed (`gated.opened()`).
        verify: compares both models in float64, on the example and on random inputs (with images of a quarter of its
            height and width, but 32 at least, where the model takes them; else of its shape).
        tolerance: the largest difference allowed, relative to the largest output.

    Returns:
        A copy of the model, smaller, in the same training mode.

    Raises:
        PruningError: the outputs differ, naming the first module whose output does; or sizes written in the model's
            code cannot be rewritten.
        ValueError: a group would lose its last unit.

    Cost, transforms:
        A copy of the model, and four runs of it.

    References:
        None.

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> gated = dl.gates.attach(net, torch.randn(1, 4))
        >>> gated.gates["0"].weight.data[3:] = -1
        >>> dl.gates.prune(gated)
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    if not isinstance(gated, Gated):
        raise TypeError(
            f"difflayers.gates.prune: argument 'gated' must be what difflayers.gates.attach returns, "
            f"got {type(gated).__name__}"
        )
    opened = {name: value.cpu() for name, value in gated.opened().items()}
    gone = {name for name, value in opened.items() if not bool(value.any())}
    for name in gone:
        value, group = opened[name], gated.groups[name]
        if group.branch is None and not gone & set(inside(group, gated.groups.values())):
            raise ValueError(
                f"difflayers.gates.prune: group '{name}' would lose its last of {len(value)} units; keep one open, or "
                f"take the layer out"
            )
    return attempt(gated, opened, verify=verify, tolerance=tolerance)


def attempt(gated: Gated, opened: dict[str, Tensor], *, verify: bool, tolerance: float, examples: int = 2) -> nn.Module:
    """The model without the units that are not open; `examples` runs are compared."""
    small = cut(gated.model, staying(gated, opened))
    take_out(small, closed_parts(gated.groups, opened))
    candidates = _sizes_in_code(gated, small, opened)
    if not verify and not candidates:
        return small
    return _verified(gated, small, candidates, opened, tolerance if verify else float("inf"), examples)


def staying(gated: Gated, opened: dict[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """For each parameter and buffer, the indices that stay along each dimension that changes."""
    result: dict[str, dict[int, Tensor]] = {}
    shut = {name for name, value in opened.items() if not bool(value.any())}
    for group in gated.groups.values():
        if group.branch is not None or shut & set(inside(group, gated.groups.values())):  # goes whole
            continue
        alive = torch.cat([opened[group.name], torch.ones(1, dtype=torch.bool)])
        for (name, dim), units in group.units.items():
            stays = alive[units]  # -1 is the last one: not of this group
            table = result.setdefault(name, {})
            table[dim] = table[dim] & stays if dim in table else stays
    return {
        name: {dim: stays.nonzero().squeeze(-1) for dim, stays in table.items() if not bool(stays.all())}
        for name, table in result.items()
    }


def shortened(tensor: Tensor, dims: dict[int, Tensor]) -> Tensor:
    """What stays of a parameter or buffer."""
    data = tensor.detach()
    for dim, index in dims.items():
        data = data.index_select(dim, index.to(data.device))
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def cut(
    model: nn.Module,
    kept: dict[str, dict[int, Tensor]],
    shorten: Callable[[Tensor, dict[int, Tensor]], Tensor] = shortened,
    memo: dict[int, Any] | None = None,
) -> nn.Module:
    """A copy with shorter parameters and buffers, and what modules remember of them.

    `memo`: what stands for the others in the copy (by id), in place of copies of them."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    made = {id(tensors[name]): shorten(tensors[name], dims) for name, dims in kept.items() if dims}
    small = copy.deepcopy(model, (memo or {}) | made)  # what is made already, under any name, is not copied
    new = {id(tensor) for tensor in made.values()}
    for module in small.modules():
        held = [*module._parameters.values(), *module._buffers.values()]
        if nn.utils.parametrize.is_parametrized(module):
            held += module.parametrizations.parameters()  # pyright: ignore
        if any(id(tensor) in new for tensor in held):
            _remember(module)
    for path, module in list(small.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and (module.out_proj.weight.shape != (module.embed_dim,) * 2):
            parent, _, name = path.rpartition(".")
            if not path:
                raise PruningError(
                    "difflayers.gates.prune: the model itself is a torch.nn.MultiheadAttention, whose heads cannot be "
                    "removed in place; wrap it, as in torch.nn.Sequential"
                )
            setattr(small.get_submodule(parent), name, SlimMultiheadAttention(module))
    return small


def _remember(module: nn.Module) -> None:
    """The sizes that torch's own layers remember."""
    layer: Any = module
    weight: Any = getattr(layer, "weight", None)  # not always a parameter: parametrized
    if isinstance(module, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        remember_recurrent(module)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        layer.normalized_shape = layer.normalized_shape if weight is None else tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        depthwise = layer.groups == layer.in_channels and layer.groups > 1
        if layer.transposed:
            layer.groups = weight.shape[0] if depthwise else layer.groups
            layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
        else:
            if depthwise:
                layer.groups = weight.shape[0] * layer.groups // layer.out_channels
            layer.out_channels, layer.in_channels = weight.shape[0], weight.shape[1] * layer.groups
    elif isinstance(module, (nn.modules.batchnorm._NormBase,)):
        tensor = weight if weight is not None else layer.running_mean
        layer.num_features = tensor.shape[0]
    elif isinstance(module, nn.GroupNorm):
        layer.num_groups = layer.num_groups * weight.shape[0] // layer.num_channels
        layer.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = weight.shape[0]


Candidate = tuple[nn.Module, str, Any]  # a module, one of its attributes, and what that would be


def _left(factor: Factor, opened: dict[str, Tensor]) -> int:
    return round(factor.constant + sum(float((counts * opened[name]).sum()) for name, counts in factor.counts.items()))


def _sizes_in_code(gated: Gated, model: nn.Module, opened: dict[str, Tensor]) -> list[Candidate]:
    """Integers, and tuples of them, that modules keep and that are the size of something reshaped in them."""
    modules = dict(model.named_modules())
    found: dict[tuple[int, str], Candidate] = {}
    for resize in gated.analysis.resizes:
        size = _left(resize.factor, opened)
        module = modules.get(resize.module)
        if module is None or size == resize.size or isinstance(module, RemovedBranch):
            continue
        for name, value in vars(module).items():
            if type(value) is int and value == resize.size:
                found[id(module), name] = (module, name, size)
            elif isinstance(value, (tuple, list)) and all(type(v) is int for v in value) and resize.size in value:
                new = [size if v == resize.size else v for v in value]
                found[id(module), name] = (module, name, new if isinstance(value, list) else tuple(new))
    return list(found.values())


def _verified(
    gated: Gated,
    small: nn.Module,
    candidates: list[Candidate],
    opened: dict[str, Tensor],
    tolerance: float,
    examples: int,
) -> nn.Module:
    """The pruned model with those sizes rewritten that make it compute what the gated one does."""
    example, *others = _inputs(gated.example)
    try:
        with torch.no_grad():
            dense = _bound(gated, _exact(gated.model), opened)
        compared = [(example, _run(dense, *example))]
        if examples > 1:
            compared.append(_first_that_runs(dense, others))
    except Exception as error:
        raise NotRunnable(
            f"difflayers.gates.prune: the gated model cannot be run in float64 ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}), so nothing can be verified; make it run there, or "
            f"pass verify=False and compare by yourself"
        ) from error
    # one decision for an attribute of all modules of a class; most often all are to be rewritten, or none
    kinds = list(dict.fromkeys((type(module), name) for module, name, _ in candidates))
    choices = [(True,) * len(kinds), (False,) * len(kinds)]
    choices += [(*c, *[True] * (len(kinds) - 8)) for c in product((True, False), repeat=min(len(kinds), 8))]
    worst: float | str = float("inf")
    original = [getattr(module, name) for module, name, _ in candidates]
    for choice in dict.fromkeys(choices):
        used = dict(zip(kinds, choice, strict=True))
        for (module, name, size), old in zip(candidates, original, strict=True):
            setattr(module, name, size if used[type(module), name] else old)
        try:
            exact = _exact(small)
            differences = [_difference(_run(exact, *problem), expected) for problem, expected in compared]
        except Exception as error:  # a size that does not fit
            worst = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            continue
        if max(differences) <= tolerance:
            return small
        worst = max(differences)
    raise PruningError(
        f"difflayers.gates.prune: the pruned model does not compute what the gated one does "
        f"({'difference ' + format(worst, '.3g') if isinstance(worst, float) else worst}); "
        f"{_blame(gated, small, opened, example)}; the gated model is unchanged"
    )


def _inputs(example: Any) -> list[Any]:
    """The example in float64; then random inputs for it, first with smaller images, then of its shape (integers
    stay)."""

    def exact(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    # what is removed are channels: a few places of an image show as much as all of them
    return [tree_map(exact, example), tree_map(_random(smaller=True), example), tree_map(_random(), example)]


def _random(*, smaller: bool = False) -> Callable[[Any], Any]:
    generator = torch.Generator().manual_seed(0)

    def random(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        shape = [
            min(n, max(32, n // 4)) if smaller and value.dim() > 3 and d > 1 else n for d, n in enumerate(value.shape)
        ]
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(value.device)

    return random


def _first_that_runs(model: Callable[..., Any], problems: list[Any]) -> tuple[Any, list[Tensor]]:
    """The first problem that the model makes something finite of, and what that is; else the last."""
    for problem in problems[:-1]:
        try:
            result = _run(model, *problem)
        except Exception:  # a model may take images of one size alone
            continue
        if all(bool(t.isfinite().all()) for t in result):
            return problem, result
    return problems[-1], _run(model, *problems[-1])


@contextmanager
def _exactly() -> Iterator[None]:
    """float64 for what the model makes itself as well, no gradients, the same random numbers, the layers' own code."""
    dtype, fast = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.backends.mha.set_fastpath_enabled(fast)


def _exact(model: nn.Module) -> nn.Module:
    """A copy in float64, in evaluation mode."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            data = tensor.detach().to(torch.float64, copy=True)
            memo[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    result = copy.deepcopy(model, memo).eval()
    if any(type(module)._apply is not nn.Module._apply for module in result.modules()):  # those have more to convert
        result.double()
    return result


def _bound(gated: Gated, model: nn.Module, opened: dict[str, Tensor]) -> Callable[..., Any]:
    """The model, a copy of the gated one in float64, with its closed channels left out."""
    return gated.bound({name: value.double() for name, value in opened.items()}, model)


def _run(model: Callable[..., Any], args: Any, kwargs: Any) -> list[Tensor]:
    with _exactly():
        return [t for t in tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor)]


def _difference(found: list[Tensor], expected: list[Tensor]) -> float:
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        kind = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        a, b = a.to(kind), b.to(kind)
        same = a == b  # infinities that a mask writes, as well
        if not bool(same.all()):
            scale = max(1.0, float(b.abs().nan_to_num(0.0, 0.0).max()))
            apart = float((a - b).abs()[~same].max()) / scale
            worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def _blame(gated: Gated, small: nn.Module, opened: dict[str, Tensor], problem: Any) -> str:
    """The first module whose output differs where it can be compared (equal shapes)."""
    outputs: list[dict[str, Any]] = []
    for side in ("gated", "pruned"):
        model = _exact(gated.model if side == "gated" else small)
        seen: dict[str, Any] = {}
        hooks = [
            module.register_forward_hook(lambda m, i, o, path=path, seen=seen: seen.setdefault(path, o))
            for path, module in model.named_modules()
        ]
        try:
            _run(_bound(gated, model, opened) if side == "gated" else model, *problem)
        except Exception as error:
            last = next(reversed(seen), "the first module")
            return f"it fails after '{last}' with {type(error).__name__}"
        finally:
            for hook in hooks:
                hook.remove()
        outputs.append(seen)
    for path, expected in outputs[0].items():
        found = outputs[1].get(path)
        if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
            continue
        if found.shape == expected.shape and _difference([found], [expected]) > 1e-8:
            return f"the first module whose output differs is '{path}'"
    return "no module's own output differs"
