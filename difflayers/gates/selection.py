"""Which channels matter: measured, or guessed from their weights; not read off the gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .. import _checks
from .attach import Gated
from .cost import checked

__all__ = ["area_loss", "importance_by_magnitude", "importance_by_masking"]


def importance_by_masking(
    gated: Gated,
    metric: Callable[[Gated], float | Tensor],
    *,
    chunks: int | None = None,
    groups: Iterable[str] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    r"""How much worse a model gets without each of its channels.

    $$s_u = m(z^{(-u)}) - m(z)$$

    for a metric m that is smaller where the model is better (a loss, an error rate), with all gates of now, and without
    the one of unit u; with `chunks`, units are closed that many parts of a group at a time, and share what is measured.

    Args:
        gated: of `difflayers.gates.attach`.
        metric: of the model, a number; called without gradients, in evaluation mode. It must not draw new data.
        chunks: into how many parts a group is split, at random; None: every unit by itself.
        groups: which to measure; None: all. The others get zeros.
        generator: for the split.

    Returns:
        `[size]` by group, float64: `scores` for `difflayers.gates.project`. Units that are closed already get 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, an unknown group, or a metric that is not finite.

    Cost, transforms:
        A call of the metric for each open unit, or chunk. No gradient.

    References:
        Fong, Vedaldi, "Interpretable Explanations of Black Boxes by Meaningful Perturbation", ICCV 2017,
        arXiv 1704.03296.

    Example:
        >>> import torch, difflayers as dl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = net[0].weight.fill_(0.0), net[0].bias.fill_(1.0)
        ...     _ = net[2].weight.copy_(torch.tensor([[1.0, 0.0, 4.0]]))
        >>> gated = dl.gates.attach(net, torch.randn(1, 2))
        >>> dl.gates.importance_by_masking(gated, lambda model: (model(torch.ones(1, 2)) - 5).abs().sum())
        {'0': tensor([1., 0., 4.], dtype=torch.float64)}
    """
    name = "difflayers.gates.importance_by_masking"
    gated = checked(name, gated)
    if chunks is not None:
        _checks.integer(name, "chunks", chunks, minimum=1)
    chosen = list(gated.groups) if groups is None else list(groups)
    strange = [group for group in chosen if group not in gated.groups]
    if strange:
        raise ValueError(
            f"{name}: argument 'groups' has '{strange[0]}', which is no group; they are {', '.join(gated.groups)}"
        )

    def measured(what: str) -> float:
        with torch.no_grad():
            value = float(metric(gated))
        if not math.isfinite(value):
            raise ValueError(f"{name}: argument 'metric' must return a finite number, got {value} {what}")
        return value

    frozen, opened = gated.frozen, {group: mask.clone() for group, mask in gated.opened().items()}
    modes = {module: module.training for module in gated.modules()}
    scores = {group: torch.zeros(value.size, dtype=torch.float64) for group, value in gated.groups.items()}
    try:
        gated.eval()
        gated.freeze(opened)
        whole = measured("with all gates of now")
        for group in chosen:
            units = opened[group].cpu().nonzero().squeeze(-1)
            if chunks is not None:
                units = units[torch.randperm(len(units), generator=generator)]
            parts = units.tensor_split(min(chunks or len(units), len(units))) if len(units) else ()
            for part in parts:
                mask = opened[group].clone()
                mask[part.to(mask.device)] = False
                gated.freeze({**opened, group: mask})
                scores[group][part] = (measured(f"without units of group '{group}'") - whole) / len(part)
    finally:
        gated.frozen = frozen
        for module, training in modes.items():
            module.training = training
    return scores


@torch.no_grad()
def importance_by_magnitude(gated: Gated, *, norm: float = 1.0) -> dict[str, Tensor]:
    r"""How large the weights are that make each channel: the usual first guess, without data.

    $$s_u = \left( \sum_{w \to u} |w|^p \right)^{1/p}$$

    over the weights of the linear layers, convolutions, embeddings, ... of which unit u is an output; a unit of a
    residual stream has several such layers, a head all its rows of q, k and v. Scales, biases and the weights that
    read the unit do not count.

    Args:
        gated: of `difflayers.gates.attach`.
        norm: p, positive: 1 for the L1 norm, 2 for the L2 norm.

    Returns:
        `[size]` by group, float64: `scores` for `difflayers.gates.project`. Zeros where no such weights make a group.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        A pass over the weights. No gradient.

    References:
        Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv 1608.08710.

    Example:
        >>> import torch, difflayers as dl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -1.0], [0.0, 3.0], [-0.5, 0.0]]))
        >>> dl.gates.importance_by_magnitude(dl.gates.attach(net, torch.randn(1, 2)))
        {'0': tensor([2.0000, 3.0000, 0.5000], dtype=torch.float64)}
    """
    name = "difflayers.gates.importance_by_magnitude"
    gated = checked(name, gated)
    norm = _checks.number(name, "norm", norm, above=0)
    parameters = dict(gated.model.named_parameters(remove_duplicate=False))
    scores = {}
    for group, value in gated.groups.items():
        total = torch.zeros(value.size, dtype=torch.float64)
        for (parameter, dim), units in value.units.items():
            weight = parameters.get(parameter)
            if weight is None or weight.dim() < 2 or (parameter, dim) in value.consumers:
                continue  # a buffer, a bias or scale, or weights that read the units
            made = weight.abs().double().pow(norm).movedim(dim, 0).flatten(1).sum(1).cpu()
            total.index_add_(0, units[units >= 0].cpu(), made[units.cpu() >= 0])
        scores[group] = total.pow(1 / norm)
    return scores


def area_loss(values: Tensor, area: float, *, dim: int = -1) -> Tensor:
    r"""How far a mask is from one that opens a given share, and nothing in between.

    $$\mathrm{mean}\left(\left| \mathrm{sort}(m) - r_a \right|^2\right)$$

    where the template $r_a$ is 0 for the smallest $(1 - a) n$ entries and 1 for the others (the count is rounded).

    Args:
        values: `[..., n]`, a gate's values (of a `HardConcreteGate`, say), or its openness.
        area: the share a of entries that are to be 1, in [0, 1].
        dim: along which the entries are.

    Returns:
        A scalar.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        A sort; double backward, torch.func, torch.compile.

    References:
        Fong, Patrick, Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks", ICCV 2019,
        arXiv 1910.08485.

    Example:
        >>> import torch, difflayers as dl
        >>> dl.gates.area_loss(torch.tensor([0.5, 0.0, 1.0, 1.0]), 0.5)
        tensor(0.0625)
    """
    name = "difflayers.gates.area_loss"
    values = _checks.tensor(name, "values", values)
    area = _checks.number(name, "area", area, minimum=0, maximum=1)
    dim = _checks.dimension(name, "values", values, dim)
    n = values.shape[dim]
    if values.numel() == 0:
        raise ValueError(f"{name}: argument 'values' must not be empty, got shape {tuple(values.shape)}")
    ordered = values.movedim(dim, -1).sort(-1).values
    template = (torch.arange(n, device=values.device) >= n - round(area * n)).to(values.dtype)
    return (ordered - template).square().mean()
