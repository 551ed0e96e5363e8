"""Which groups can in fact be removed: tried at once, so that nobody trains gates that cannot be closed."""

from __future__ import annotations

import torch
from torch import Tensor

from ._analysis import Analysis, Factor, Term, Trace
from ._shapes import shrinks
from .attach import Gated
from .prune import NotRunnable, PruningError, attempt
from .removed import shaped

__all__ = ["dense", "stuck", "stuck_branches"]


def stuck(gated: Gated, trace: Trace) -> dict[str, str]:
    """The groups without which all others can be removed together, and why each of them cannot be."""
    names = [name for name, group in gated.groups.items() if group.branch is None]
    if shrinks(gated, trace, _opened(gated, names)):
        return {}
    why = _failure(gated, names)
    if why is None:
        return {}
    good: list[str] = []
    result: dict[str, str] = {}
    for name in names:
        why = _failure(gated, [*good, name])
        if why is None:
            good.append(name)
        else:
            result[name] = why
    return result


def stuck_branches(gated: Gated, others: dict[str, str]) -> dict[str, str]:
    """The branches that cannot be taken out, and why; those that can only where zeros have a shape get such.

    `others` are the groups that stay as they are."""
    names = [name for name, group in gated.groups.items() if group.branch is not None]
    channels = [name for name, group in gated.groups.items() if group.branch is None and name not in others]
    plain = {name: gated.groups[name] for name in names}
    result: dict[str, str] = {}

    def take(chosen: list[str], *, with_shape: bool) -> None:
        for name in chosen:
            branch = plain[name].branch
            if branch is not None:
                parts = shaped(gated.model, branch.parts) if with_shape else branch.parts
                gated.groups[name] = plain[name]._replace(branch=branch._replace(parts=parts))

    for with_shape in (False, True):
        take(names, with_shape=with_shape)
        if not names or _failure(gated, [*channels, *names]) is None:
            return result
    for name in names:
        take([name], with_shape=False)
        why = _failure(gated, [*channels, name])
        if why is not None:
            take([name], with_shape=True)
            if _failure(gated, [*channels, name]) is not None:
                result[name] = f"residual branch: {why}"
    return result


def _opened(gated: Gated, closed: list[str]) -> dict[str, Tensor]:
    """About half of the units of some groups closed."""
    generator = torch.Generator().manual_seed(0)
    opened = {}
    for name, group in gated.groups.items():
        value = torch.ones(group.size, dtype=torch.bool)
        if name in closed:
            value[torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2]] = False
        opened[name] = value
    return opened


def _failure(gated: Gated, closed: list[str]) -> str | None:
    """Closes about half of the units of some groups and prunes; what went wrong, or None."""
    try:
        attempt(gated, _opened(gated, closed), verify=True, tolerance=1e-8, examples=1)
    except NotRunnable:
        return None  # nothing can be said
    except PruningError as error:
        return str(error).removeprefix("difflayers.gates.prune: ").removesuffix("; the gated model is unchanged")
    return None


def dense(analysis: Analysis, names: dict[str, str]) -> Analysis:
    """The analysis with these groups left as they are."""

    def whole(factor: Factor) -> Factor:
        stays = sum(float(counts.sum()) for name, counts in factor.counts.items() if name in names)
        counts = {name: counts for name, counts in factor.counts.items() if name not in names}
        return Factor(factor.constant + stays, counts, factor.whole)

    def left(terms: list[Term]) -> list[Term]:
        return [term._replace(factors=tuple(whole(factor) for factor in term.factors)) for term in terms]

    return analysis._replace(
        groups=[group for group in analysis.groups if group.name not in names],
        flops=left(analysis.flops),
        parameters=left(analysis.parameters),
        resizes=[resize._replace(factor=whole(resize.factor)) for resize in analysis.resizes],
        norms=[[(name, units) for name, units in norm if name not in names] for norm in analysis.norms],
        unknown=analysis.unknown | names,
    )
