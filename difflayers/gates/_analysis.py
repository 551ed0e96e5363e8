"""What of a model can be removed: its graph, propagation, and the groups of units that come out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from . import _layers, _recurrent, _rules  # noqa: F401  (register their rules)
from ._atoms import ALWAYS, NONE, compact, varying
from ._branches import Branch, with_branches
from ._propagate import Propagation, operator_name
from ._record import Recorded, traced

__all__ = ["Analysis", "Factor", "Group", "Resize", "Term", "Trace", "analyse", "analysed"]

# operators whose arguments are sizes, and layers that check or warn of theirs
RESIZING = {
    "view", "reshape", "_unsafe_view", "unflatten", "expand", "split_with_sizes", "split", "repeat", "narrow",
    "slice", "layer_norm", "rms_norm", "instance_norm", "zeros", "new_zeros",
}  # fmt: skip


class Group(NamedTuple):
    """Units that occupy the same parameter dimensions.

    Attributes:
        name: after the first parameter that makes them.
        size: how many units.
        units: for each dimension (parameter, dim) the unit `[size of the dimension]` of every index; -1: not of the
            group.
        consumers: the dimensions among these whose masking closes a unit.
        branch: the residual branch that the one unit is, if it is one; its parameters go whole.
    """

    name: str
    size: int
    units: dict[tuple[str, int], Tensor]
    consumers: tuple[tuple[str, int], ...]
    branch: Branch | None = None


class Factor(NamedTuple):
    """A share that is left: `constant` + the sum over groups of counts `[size]` times open, over `whole`."""

    constant: float
    counts: dict[str, Tensor]
    whole: float


class Term(NamedTuple):
    """`amount` times the product of the factors; `module` is the path of the module that does this work."""

    amount: float
    factors: tuple[Factor, ...]
    module: str = ""


class Resize(NamedTuple):
    """A size that the model's code may have written down: of a dimension of a reshaped tensor."""

    module: str
    node: str
    size: int
    factor: Factor


class Analysis(NamedTuple):
    """The groups of a model, its cost, and what was left out.

    Attributes:
        norms: for each call of a norm over channels, in the graph's order, the groups that it takes statistics over,
            with the unit of every index, as in `Group.units`.
        means: whether means are among these calls, all of them: some are over channels.
    """

    groups: list[Group]
    flops: list[Term]
    parameters: list[Term]
    resizes: list[Resize]
    norms: list[list[tuple[str, Tensor]]]
    unknown: dict[str, str]
    means: bool = False


class Trace(NamedTuple):
    """The graph that was analysed.

    Attributes:
        recorded: the graph.
        sizes: of each node that makes a tensor, the dimensions whose size depends on what is removed.
        touched: the nodes that make something that can be removed.
    """

    recorded: Recorded
    sizes: dict[fx.Node, list[tuple[int, Factor]]]
    touched: set[fx.Node]


def analyse(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], **options: bool) -> Analysis:
    """As `analysed`, without the graph."""
    return analysed(model, args, kwargs, **options)[0]


def analysed(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    skip_unknown: bool = False,
    allow_inexact: bool = False,
    branches: bool = False,
) -> tuple[Analysis, Trace]:
    """The units of a model, from its graph on the example inputs; the model is not changed."""
    graph, names = program = traced(model, args, kwargs)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    run = Propagation(
        {name: tuple(tensors[name].shape) for name in dict.fromkeys(names.values())},
        skip_unknown=skip_unknown, allow_inexact=allow_inexact,
    )  # fmt: skip
    run.run(graph, names)
    roots = _rectangular(run)
    units = _groups(run, roots)
    modules = {node.name: module_of(node) for node in graph.nodes}
    flops = [
        Term(2 * work.macs, tuple(_factor(roots[atoms], units) for atoms in work.factors), modules[work.node])
        for work in run.work
    ]
    trainable = [name for name, _ in model.named_parameters() if name in run.atoms.shapes]
    parameters = [
        Term(
            float(tensors[name].numel()),
            tuple(_factor(roots[run.atoms.of_dimension[name, d]], units) for d in range(tensors[name].dim())),
        )
        for name in trainable
    ]
    trace = _trace(program, run, roots, units)
    norms = _norms(run, graph, roots, units)
    result = Analysis(units.groups, flops, parameters, _resizes(trace), norms, run.unknown, _means(run))
    if branches:
        work = [each.node for each in run.work]
        result = with_branches(result, model, args, kwargs, graph=graph, names=names, work=work, trainable=trainable)
    return result, trace


def _rectangular(run: Propagation) -> Tensor:
    """The roots of all atoms, after ties that make what remains of every tensor a tensor: labels run along one
    dimension of it at most, the one with the most of them."""
    distinct = {id(labels): labels for labels, _ in run.seen}
    several = [labels for labels in distinct.values() if sum(n > 1 for n in compact(labels)[0].shape) > 1]
    for _ in range(50):
        roots = run.atoms.roots()
        changed = False
        for labels in several:
            (small,) = compact(labels)
            resolved = torch.where(small == NONE, NONE, roots[small.clamp(min=0)])
            over = varying(resolved)
            if len(over) < 2:
                continue
            found = {d: resolved.movedim(d, 0).flatten(1)[:, 0].unique().tolist() for d in over}
            # the same choice wherever the same labels are, however they are turned
            best = min(over, key=lambda d: (-len(found[d]), found[d]))
            for d in over:
                if d != best:
                    run.atoms.tie(resolved, resolved.narrow(d, 0, 1).expand_as(resolved))
            changed = True
        if not changed:
            return roots
    raise AssertionError("ties do not settle")


def _groups(run: Propagation, roots: Tensor) -> Units:
    """Groups of units, and what each root is."""
    places = list(run.atoms.of_dimension)
    place = np.repeat(np.arange(len(places)), [len(atoms) for atoms in run.atoms.of_dimension.values()])
    # atoms are numbered in the order of the places, from 1
    at = np.sort(roots.numpy()[1:] * len(places) + place)
    at = at[(at >= (ALWAYS + 1) * len(places)) & (np.diff(at, prepend=-1) > 0)]
    of_root, at = np.divmod(at, len(places))
    starts = np.flatnonzero(np.diff(of_root, prepend=-1))
    ends = [*starts[1:].tolist(), len(at)] if len(at) else []
    together: dict[bytes, list[int]] = {}
    for root, start, end in zip(of_root[starts].tolist(), starts.tolist(), ends, strict=True):
        together.setdefault(at[start:end].tobytes(), []).append(root)
    groups: list[Group] = []
    taken: set[str] = set()
    which, unit = torch.full((len(roots),), -1), torch.full((len(roots),), -1)
    for key, members in together.items():
        where = [places[i] for i in np.frombuffer(key, at.dtype)]
        consumers = tuple(place for place in where if place in run.consumers)
        if not consumers or len(members) < 2:  # one place alone: a parameter that makes its own input, tied weights
            continue
        makers = [place for place in where if place not in run.consumers] or where
        name = makers[0][0].rsplit(".", 1)[0].replace(".", "_") if "." in makers[0][0] else makers[0][0]
        while name in taken or hasattr(nn.ModuleDict(), name):
            name += "_"
        taken.add(name)
        which[torch.tensor(members)] = len(groups)
        unit[torch.tensor(members)] = torch.arange(len(members))
        units = {}
        for each in where:
            found = roots[run.atoms.of_dimension[each]]
            units[each] = torch.where(which[found] == len(groups), unit[found], -1)
        groups.append(Group(name, len(members), units, consumers))
    return Units(groups, which, unit, {})


class Units(NamedTuple):
    """What each root is: `which` group (its place in `groups`; -1: none), and which `unit` of it."""

    groups: list[Group]
    which: Tensor
    unit: Tensor
    factors: dict[bytes, Factor]  # those made so far


def _factor(roots: Tensor, units: Units) -> Factor:
    key = roots.numpy().tobytes()
    if key not in units.factors:
        which, unit = units.which[roots], units.unit[roots]
        counts = {
            units.groups[at].name: torch.bincount(unit[which == at], minlength=units.groups[at].size).double()
            for at in which.unique().tolist()
            if at >= 0
        }
        units.factors[key] = Factor(float((which < 0).sum()), counts, float(roots.numel()))
    return units.factors[key]


def _trace(program: Recorded, run: Propagation, roots: Tensor, units: Units) -> Trace:
    known: dict[int, tuple[bool, list[tuple[int, Factor]]]] = {}  # one tensor of labels is many nodes'
    trace = Trace(program, {}, set())
    for labels, node in run.seen:
        if id(labels) not in known:
            (small,) = compact(labels)
            resolved = torch.where(small == NONE, NONE, roots[small.clamp(min=0)])
            over = varying(resolved) if resolved.numel() > 1 else []
            sizes = [(d, _factor(resolved.movedim(d, 0).reshape(resolved.shape[d], -1)[:, 0], units)) for d in over]
            known[id(labels)] = bool((units.which[resolved.clamp(min=ALWAYS)] >= 0).any()), sizes
        touched, sizes = known[id(labels)]
        if touched:
            trace.touched.add(node)
        trace.sizes.setdefault(node, []).extend(sizes)
    return trace


def _resizes(trace: Trace) -> list[Resize]:
    result = []
    for node, sizes in trace.sizes.items():
        if operator_name(node) not in RESIZING:
            continue
        for _, factor in sizes:
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            for module in {path for path, _ in stack} | {""}:
                result.append(Resize(module, node.name, round(factor.whole), factor))
    return result


def _norms(run: Propagation, graph: fx.Graph, roots: Tensor, units: Units) -> list[list[tuple[str, Tensor]]]:
    gated = {node: labels for labels, node in run.inexact}
    kinds = ("layer_norm", "rms_norm", *(["mean"] if _means(run) else []))
    result: list[list[tuple[str, Tensor]]] = []
    for node in graph.nodes:
        if node.op != "call_function" or operator_name(node) not in kinds:
            continue
        places: dict[str, Tensor] = {}
        if node in gated:
            labels = gated[node].reshape(-1, gated[node].shape[-1])[0]
            found = roots[labels.clamp(min=ALWAYS)]
            for at in units.which[found].unique().tolist():
                if at >= 0:
                    places[units.groups[at].name] = torch.where(units.which[found] == at, units.unit[found], -1)
        result.append(list(places.items()))
    return result


def _means(run: Propagation) -> bool:
    return any(operator_name(node) == "mean" for _, node in run.inexact)


def module_of(node: fx.Node) -> str:
    """The path of the innermost module that the node belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""
