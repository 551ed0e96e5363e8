"""Runs an exported graph on labels instead of numbers: see `_atoms`.

What only moves data (view, permute, cat, chunk, pixel_shuffle, ...) is run as it is, on the labels. What computes has a
rule of its own in `_rules`. What has neither is unknown, and never taken for element-wise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from ..errors import UnsupportedOperationError
from ._atoms import ALWAYS, NONE, Atoms, compact, varying

__all__ = ["RULES", "Labels", "Parameters", "Propagation", "Work", "rule"]


class Labels(NamedTuple):
    """An activation: the atom of every element, int64 of its shape."""

    atoms: Tensor

    @property
    def shape(self) -> torch.Size:
        """The activation's."""
        return self.atoms.shape


class Parameters(NamedTuple):
    """A tensor made of parameters and buffers: for each, where every element comes from (its flat index)."""

    sources: tuple[tuple[str, Tensor], ...]

    @property
    def shape(self) -> torch.Size:
        """The tensor's."""
        return self.sources[0][1].shape


class Work(NamedTuple):
    """Multiply-adds that shrink with what is removed: `macs` times the share of each factor that is left.

    Attributes:
        macs: of the dense model.
        factors: the atoms `[size]` of each dimension whose share counts.
        node: where.
    """

    macs: float
    factors: tuple[Tensor, ...]
    node: str


Rule = Callable[["Propagation", fx.Node, list[Any], dict[str, Any]], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the operators aten.NAME of these names, all overloads."""

    def register(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, name
            RULES[name] = function
        return function

    return register


# data movement: run on labels and on provenances as it is
MOVES = {
    "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "movedim", "swapaxes", "swapdims", "flatten",
    "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat", "repeat_interleave", "slice", "select",
    "narrow",
    "chunk", "split", "split_with_sizes", "unbind", "unsafe_chunk", "unsafe_split", "tensor_split", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "flip", "roll", "diagonal", "unfold", "numpy_T", "mT", "view_as",
    "reshape_as",
    "tile", "hsplit", "vsplit", "moveaxis", "adjoint",
}  # fmt: skip
# of these, the ones that cut into pieces of one size (split_with_sizes where its sizes are equal)
PARTS = {"chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split", "tensor_split"}


class Propagation:
    """The state of one run: atoms, values of nodes, and what was found on the way.

    Attributes:
        consumers: parameter dimensions whose indices meet inputs: (name, dim). Masking them closes a channel exactly.
        inexact: labels over which statistics are taken, with the node that does so.
        seen: labels of every node, for the check that what remains of a tensor is a tensor.
        unknown: operators that were skipped, with their node.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], *, skip_unknown: bool, allow_inexact: bool) -> None:
        self.atoms = Atoms(shapes)
        self.skip_unknown, self.allow_inexact = skip_unknown, allow_inexact
        self.consumers: set[tuple[str, int]] = set()
        self.inexact: list[tuple[Tensor, fx.Node]] = []
        self.seen: list[tuple[Tensor, fx.Node]] = []
        self.unknown: dict[str, str] = {}
        self.work: list[Work] = []
        largest = max((_numel(shape) for shape in shapes.values()), default=1)
        numbers = torch.arange(max(1, largest))
        # of each parameter, the flat index of every element
        self.places = {name: numbers[: _numel(shape)].view(shape) for name, shape in shapes.items()}

    def run(self, graph: fx.Graph, names: dict[str, str]) -> None:
        """Runs the graph; `names` maps placeholders to the parameters and buffers they stand for."""
        values: dict[fx.Node, Any] = {}
        alive = _needed(graph)
        for node in graph.nodes:
            if node not in alive:
                continue
            if node.op == "placeholder":
                values[node] = self._input(node, names)
            elif node.op == "call_function":
                load = lambda n: values[n]  # noqa: E731
                values[node] = self.call(node, list(fx.map_arg(node.args, load)), dict(fx.map_arg(node.kwargs, load)))
                self._note(values[node], node)
            elif node.op == "output":
                fx.map_arg(node.args, lambda n: self.keep(values[n]))
            else:
                self.refuse(node, [values[n] for n in node.all_input_nodes])
                values[node] = self.fixed(node)

    def _input(self, node: fx.Node, names: dict[str, str]) -> Any:
        if node.name in names:
            return Parameters(((names[node.name], self.places[names[node.name]]),))
        return self.fixed(node)

    def _note(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Labels):
            self.seen.append((value.atoms, node))
        elif isinstance(value, (tuple, list)) and not isinstance(value, Parameters):
            for part in value:
                self._note(part, node)

    def call(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The value of a node."""
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = operator_name(node)
        if name in MOVES:
            return self.moved(node, args, kwargs)
        if name in RULES:
            return RULES[name](self, node, args, kwargs)
        operands = [value for value in flattened([args, kwargs]) if isinstance(value, (Labels, Parameters))]
        if not any(isinstance(value, Labels) and bool((value.atoms > ALWAYS).any()) for value in operands):
            if operands and all(isinstance(value, Parameters) for value in operands):
                self.keep(operands)  # of parameters alone: they stay as they are
            return self.fixed(node)
        self.refuse(node, operands)
        return self.fixed(node)

    def moved(self, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """The operator itself, on labels or provenances."""
        target: Any = node.target
        if operator_name(node) in ("view", "_unsafe_view") and not isinstance(args[1], torch.dtype):
            target = torch.ops.aten.reshape.default  # labels have other strides
        first = args[0]

        def of(pick: Callable[[Any], Any]) -> Any:
            return target(*[pick(a) for a in args], **{key: pick(value) for key, value in kwargs.items()})

        if isinstance(first, Labels):
            result = wrapped(of(lambda a: a.atoms if isinstance(a, Labels) else a), Labels)
            if operator_name(node) in PARTS:
                self._of_one_size(first, result, node)
            return result
        if isinstance(first, Parameters):
            parts = [
                of(lambda a, i=i: a.sources[i][1] if isinstance(a, Parameters) else a)
                for i in range(len(first.sources))
            ]
            if isinstance(parts[0], (tuple, list)):
                return [
                    Parameters(tuple((name, part[j]) for (name, _), part in zip(first.sources, parts, strict=True)))
                    for j in range(len(parts[0]))
                ]
            return Parameters(tuple((name, part) for (name, _), part in zip(first.sources, parts, strict=True)))
        return self.fixed(node)

    def _of_one_size(self, whole: Labels, parts: list[Labels], node: fx.Node) -> None:
        """What is cut into pieces of one size stays so: their channels of one place exist together."""
        dim = int(node.args[2]) if len(node.args) > 2 else int(node.kwargs.get("dim", 0))  # pyright: ignore
        if dim % len(whole.shape) not in varying(whole.atoms):
            return
        for part in parts[1:]:
            if part.shape == parts[0].shape:
                self.atoms.tie(part.atoms, parts[0].atoms)
            elif operator_name(node) != "split_with_sizes":  # the last is shorter: its size depends on all others'
                self.keep(whole)

    def fixed(self, node: fx.Node) -> Any:
        """A value that always exists, of the node's shape."""
        return wrapped(
            map_aggregate(
                node.meta.get("val"),
                lambda v: torch.tensor(ALWAYS).expand(v.shape) if isinstance(v, Tensor) else v,
            ),
            Labels,
        )

    def keep(self, values: Any) -> None:
        """Nothing of these may be removed."""
        for value in flattened(values):
            if isinstance(value, Labels):
                self.atoms.keep(value.atoms)
            elif isinstance(value, Parameters):
                for name, _ in value.sources:
                    for dim in range(len(self.atoms.shapes[name])):
                        self.atoms.keep(self.atoms.of_dimension[name, dim])

    def kept(self, labels: Tensor) -> Tensor:
        """These exist always: labels that say so at once, for what comes after."""
        self.atoms.keep(labels)
        return torch.tensor(ALWAYS).expand(labels.shape)

    def refuse(self, node: fx.Node, operands: list[Any]) -> None:
        """An operation that is not understood: raises, or keeps all that touches it."""
        if not self.skip_unknown:
            raise UnsupportedOperationError(
                f"difflayers.gates.attach: operation {node.target} at node '{node.name}' ({where(node)}) is not "
                f"understood, so nothing can be said about removing its channels; pass unknown='skip' to leave all "
                f"groups that touch it as they are"
            )
        self.unknown[node.name] = str(node.target)
        self.keep(operands)

    def tie_parameter(
        self, labels: Tensor, parameters: Parameters, *, over: list[int] | None = None
    ) -> list[tuple[str, int]]:
        """Ties labels to the parameters' dimensions that run along the dimensions `over` (default: along which labels
        vary); both of one shape. Returns the parameter dimensions that were tied."""
        tied = []
        for name, source in parameters.sources:
            shape = self.atoms.shapes[name]
            full, source = compact(*torch.broadcast_tensors(labels, source))
            along = [d for d in (varying(labels) if over is None else over) if full.shape[d] > 1]
            index = torch.unravel_index(source, shape) if shape else ()
            for dim, at in enumerate(index):
                if shape[dim] > 1 and any(_moves_along(at, d) for d in along):
                    self.atoms.tie(full, self.atoms.of_dimension[name, dim][at])
                    tied.append((name, dim))
        return tied


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that an output depends on, and all that write into a tensor, with what they read."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        writes = schema is not None and schema.is_mutable
        if node.op in ("placeholder", "output") or writes or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def operator_name(node: fx.Node) -> str:
    """ "conv2d" of aten.conv2d.default; in-place variants as the others."""
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return name[:-1] if name.endswith("_") and not name.startswith("_") else name


def where(node: fx.Node) -> str:
    """The module that the node belongs to, for messages."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return f"module '{path}'" if path else "the model's own forward"


def flattened(values: Any) -> list[Any]:
    """The leaves of nested lists and dicts."""
    if isinstance(values, (Labels, Parameters)):
        return [values]
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in flattened(value)]
    if isinstance(values, (list, tuple)):
        return [leaf for value in values for leaf in flattened(value)]
    return [values]


def wrapped(value: Any, kind: Any) -> Any:
    """Tensors within lists, each wrapped."""
    if isinstance(value, Tensor):
        return kind(value)
    if isinstance(value, (list, tuple)):
        return [wrapped(part, kind) for part in value]
    return value


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _moves_along(index: Tensor, dim: int) -> bool:
    return bool((index.narrow(dim, 0, 1) != index).any())


assert NONE < ALWAYS
