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


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(run: Propagation, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Hidden unit j is row j of every part of w_ih `[parts H, I]`, w_hh `[parts H, H]` and their biases, and column j
    of w_hh.

    The module remembers one size: unit j of all layers and directions exists together. A state that comes from outside
    has H numbers, so then the units stay.
    """
    x, state, weights = args[0], args[1], args[2]
    parts = {"lstm": 4, "gru": 3}.get(operator_name(node), 1)
    found = [whole_parameter(run, weight) for weight in weights] if isinstance(weights, (list, tuple)) else [None]
    each = 4 if args[3] else 2
    layers, directions = args[4], 2 if args[7] else 1
    if not isinstance(x, Labels) or None in found or len(found) != each * layers * directions:
        run.refuse(node, args)  # packed sequences, projections
        return run.fixed(node)
    names = [place[0] for place in found if place is not None]
    unit = run.atoms.of_dimension[names[1], 1]
    run.keep(state)
    states: Any = node.args[1]
    if not all(_zeros(node) for node in (states if isinstance(states, (list, tuple)) else [states])):
        run.atoms.keep(unit)
    inputs = channel_labels(run, x, -1)
    steps = float(x.atoms.numel() // max(1, x.shape[-1]))
    for layer in range(layers):
        for direction in range(directions):
            of_input, of_hidden, *biases = names[each * (layer * directions + direction) :][:each]
            for name in (of_input, of_hidden, *biases):
                run.atoms.tie(run.atoms.of_dimension[name, 0].view(parts, -1), unit.expand(parts, -1))
            columns, hidden = run.atoms.of_dimension[of_input, 1], run.atoms.of_dimension[of_hidden, 1]
            run.atoms.tie(hidden, unit)
            run.consumers.add((of_hidden, 1))
            if bool((inputs > ALWAYS).any()):
                run.atoms.tie(inputs, columns)
                run.consumers.add((of_input, 1))
            else:
                run.atoms.keep(columns)
            run.work.append(Work(steps * parts * len(unit) * len(columns), (unit, columns), node.name))
            run.work.append(Work(steps * parts * len(unit) * len(unit), (unit, hidden), node.name))
        inputs = unit.repeat(directions)
    output, *last = node.meta["val"]
    return [Labels(along(inputs, output.dim() - 1, output.shape))] + [
        Labels(along(unit, value.dim() - 1, value.shape)) for value in last
    ]


def _zeros(node: Any) -> bool:
    """Made by torch.zeros, as the module does where no state is given."""
    while operator_name(node) == "detach":
        node = node.args[0]
    return operator_name(node) == "zeros"


@contextmanager
def flat_weights(model: nn.Module, replaced: dict[str, Tensor]) -> Iterator[None]:
    """Within, recurrent modules run with the replaced parameters, whose list of them functional_call does not reach."""
    before: list[tuple[nn.RNNBase, list[Any]]] = []
    try:
        for path, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                names = [f"{path}.{name}" if path else name for name in module._flat_weights_names]
                if any(name in replaced for name in names):
                    before.append((module, module._flat_weights))
                    module._flat_weights = [
                        replaced.get(name, weight) for name, weight in zip(names, module._flat_weights, strict=True)
                    ]
        yield
    finally:
        for module, weights in before:
            module._flat_weights = weights


def remember_recurrent(module: nn.RNNBase) -> None:
    """The sizes and the list of weights of a module whose parameters have been cut."""
    module.hidden_size = getattr(module, "weight_hh_l0").shape[1]  # noqa: B009
    module.input_size = getattr(module, "weight_ih_l0").shape[1]  # noqa: B009
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
