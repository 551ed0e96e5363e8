"""Recurrent layers: their rule, and the list of weights that torch's modules keep beside their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from ._atoms import ALWAYS
from ._layers import along, channel_labels, whole_parameter
from ._propagate import Labels, Propagation, Work, operator_name, rule

__all__ = ["flat_weights", "remember_recurrent"]

PARTS = {"lstm": 4, "gru": 3}  # of the rows of a weight; 1 of plain ones


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Hidden unit j is row j of every part of w_ih `[parts H, I]`, w_hh `[parts H, H]` and their biases, and column j
    of w_hh. With a projection w_hr `[P, H]`, its columns are the hidden units, and its rows are the columns of w_hh;
    hidden units stay then: torch tells from P != H that there is a projection, so the two must not become equal.

    The module remembers one size: unit j of all layers and directions exists together. A state that comes from outside
    has H numbers, so then the units stay.
    """
    x, state, weights = args[0], args[1], args[2]
    parts = PARTS.get(operator_name(node), 1)
    found = [whole_parameter(run, weight) for weight in weights] if isinstance(weights, (list, tuple)) else [None]
    each = 4 if args[3] is True else 2
    layers, directions = args[4], 2 if args[7] is True else 1
    projected = len(found) == (each + 1) * layers * directions
    if not isinstance(x, Labels) or None in found or (not projected and len(found) != each * layers * directions):
        run.refuse(node, args)
        return run.fixed(node)
    each += projected
    names = [place[0] for place in found if place is not None]
    unit = run.atoms.of_dimension[names[each - 1], 1] if projected else run.atoms.of_dimension[names[1], 1]
    given = run.atoms.of_dimension[names[each - 1], 0] if projected else unit  # what is handed on
    run.keep(state)
    if projected:
        run.atoms.keep(unit)
    states: Any = node.args[1]
    made = states if isinstance(states, (list, tuple)) else [states]
    if not all(_zeros(each) for each in made):
        run.atoms.keep(unit)
        run.atoms.keep(given)
    else:  # of the size that the code says
        for source, labels in zip(made, (given, unit), strict=False):
            shape = source.meta["val"].shape
            run.seen.append((along(labels, len(shape) - 1, shape), source))
    inputs = channel_labels(run, x, -1)
    steps = float(x.atoms.numel() // max(1, x.shape[-1]))
    for layer in range(layers):
        for direction in range(directions):
            of_input, of_hidden, *rest = names[each * (layer * directions + direction) :][:each]
            if projected:
                out = rest.pop()
                run.atoms.tie(run.atoms.of_dimension[out, 1], unit)
                run.atoms.tie(run.atoms.of_dimension[out, 0], given)
                run.consumers.add((out, 1))
                run.work.append(Work(steps * len(unit) * len(given), (unit, given), node.name))
            _step(run, node, inputs, unit, given, (of_input, of_hidden, *rest), parts, steps)
        inputs = given.repeat(directions)
    output, last, *cell = node.meta["val"]
    return [
        Labels(along(inputs, output.dim() - 1, output.shape)),
        Labels(along(given, last.dim() - 1, last.shape)),
        *[Labels(along(unit, value.dim() - 1, value.shape)) for value in cell],
    ]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """One step, as of the layers; the state is that of an earlier step, or zeros."""
    x, state, *weights = args
    parts = PARTS.get(operator_name(node).removesuffix("_cell"), 1)
    found = [whole_parameter(run, weight) for weight in weights if weight is not None]
    if not isinstance(x, Labels) or None in found:
        run.refuse(node, args)
        return run.fixed(node)
    names = [place[0] for place in found if place is not None]
    unit = run.atoms.of_dimension[names[1], 1]
    nodes: Any = node.args[1]
    listed = isinstance(nodes, (list, tuple))
    for source, before in zip(nodes if listed else [nodes], state if listed else [state], strict=True):
        if _zeros(source):  # of the size that the code says
            run.seen.append((along(unit, before.atoms.dim() - 1, before.shape), source))
        elif isinstance(before, Labels) and bool((before.atoms > ALWAYS).any()):
            run.atoms.tie(before.atoms, along(unit, before.atoms.dim() - 1, before.shape))
        else:
            run.atoms.keep(unit)
    inputs = channel_labels(run, x, -1)
    steps = float(x.atoms.numel() // max(1, x.shape[-1]))
    _step(run, node, inputs, unit, unit, tuple(names), parts, steps)
    value = node.meta["val"]
    after = [Labels(along(unit, each.dim() - 1, each.shape)) for each in (value if listed else [value])]
    return after if listed else after[0]


def _step(
    run: Propagation, node: fx.Node, inputs: Tensor, unit: Tensor, given: Tensor, names: tuple[str, ...], parts: int,
    steps: float,
) -> None:  # fmt: skip
    """The products with what comes in and what was handed on: names of w_ih, w_hh and biases."""
    for name in names:
        run.atoms.tie(run.atoms.of_dimension[name, 0].view(parts, -1), unit.expand(parts, -1))
    columns, hidden = run.atoms.of_dimension[names[0], 1], run.atoms.of_dimension[names[1], 1]
    run.atoms.tie(hidden, given)
    run.consumers.add((names[1], 1))
    if bool((inputs > ALWAYS).any()):
        run.atoms.tie(inputs, columns)
        run.consumers.add((names[0], 1))
    else:
        run.atoms.keep(columns)
    run.work.append(Work(steps * parts * len(unit) * len(columns), (unit, columns), node.name))
    run.work.append(Work(steps * parts * len(unit) * len(given), (unit, hidden), node.name))


def _zeros(node: Any) -> bool:
    """Made of nothing, as the module does where no state is given."""
    while operator_name(node) == "detach":
        node = node.args[0]
    return operator_name(node) in ("zeros", "new_zeros")


@contextmanager
def flat_weights(model: nn.Module, replaced: dict[str, Tensor]) -> Iterator[None]:
    """Within, recurrent modules run with the replaced parameters, whose list of them functional_call does not reach."""
    before: list[tuple[nn.RNNBase, list[Any]]] = []
    known = dict(model.named_parameters(remove_duplicate=False))
    swapped = {id(known[name]): tensor for name, tensor in replaced.items()}  # under any name that it is tied to
    try:
        for path, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                names = [f"{path}.{name}" if path else name for name in module._flat_weights_names]
                if any(id(known.get(name)) in swapped for name in names):
                    before.append((module, module._flat_weights))
                    module._flat_weights = [
                        swapped.get(id(known.get(name)), weight)
                        for name, weight in zip(names, module._flat_weights, strict=True)
                    ]
        yield
    finally:
        for module, weights in before:
            module._flat_weights = weights


def remember_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    """The sizes and the list of weights of a module whose parameters have been cut."""
    parameters: Any = module._parameters
    if isinstance(module, nn.RNNCellBase):
        module.hidden_size, module.input_size = parameters["weight_hh"].shape[1], parameters["weight_ih"].shape[1]
        return
    module.input_size = parameters["weight_ih_l0"].shape[1]
    if module.proj_size:
        module.proj_size, module.hidden_size = parameters["weight_hr_l0"].shape
    else:
        module.hidden_size = parameters["weight_hh_l0"].shape[1]
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
