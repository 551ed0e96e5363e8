"""Gates on the channels of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from .. import _checks
from ..errors import UnsupportedOperationError
from ._analysis import Analysis, Group, Term, analysed
from ._masking import masked_along
from ._recurrent import flat_weights
from ._statistics import norms_of
from .gate import Gate, TrainableGate

__all__ = ["Gated", "attach"]


class Gated(nn.Module):
    """A model whose channels have gates; made by `difflayers.gates.attach`.

    Called as the model. A closed gate means exactly that the channel does not exist: the weights that meet it as an
    input are multiplied by the gate, so whatever the channel holds (a bias, a sigmoid's one half, a padded border)
    reaches nothing. The model itself is not changed, and its parameters are trained as before.

    Attributes:
        model: the model; its parameters are those that were given.
        gates: `nn.ModuleDict` of `Gate`, one a group.
        groups: what each gate's entries are (`Group`).
    """

    def __init__(self, model: nn.Module, analysis: Analysis, make: Callable[[int], Gate], example: Any) -> None:
        super().__init__()
        self.model = model
        self.gates = nn.ModuleDict({group.name: make(group.size) for group in analysis.groups})
        self.groups: dict[str, Group] = {group.name: group for group in analysis.groups}
        self.analysis = analysis
        self.example = example
        self.frozen: dict[str, Tensor] | None = None
        self._masked: dict[str, list[tuple[int, str]]] = {}
        for group in analysis.groups:
            for name, dim in group.consumers:
                units = group.units[name, dim]
                self.register_buffer(
                    _key(name, dim, group.name), torch.where(units < 0, group.size, units), persistent=False
                )
                self._masked.setdefault(name, []).append((dim, group.name))
        for i, places in enumerate(analysis.norms):
            for name, units in places:
                index = torch.where(units < 0, self.groups[name].size, units)
                self.register_buffer(_key("norm", i, name), index, persistent=False)

    def values(self) -> dict[str, Tensor]:
        """The gates' values now, by group; constants when they are frozen."""
        if self.frozen is not None:
            weights: Any = {name: gate.weight for name, gate in self.gates.items()}
            return {name: mask.to(weights[name]) for name, mask in self.frozen.items()}
        return {name: gate() for name, gate in self.gates.items()}

    def openness(self) -> dict[str, Tensor]:
        """The gates' expected values, by group: what budgets count."""
        if self.frozen is not None:
            return self.values()
        return {name: gate.openness() for name, gate in self.gates.items()}  # pyright: ignore[reportCallIssue]

    def freeze(self, opened: dict[str, Tensor] | None = None) -> None:
        """Holds the gates at 0 and 1 as given (default: as they are open now), `[size]` bool by group.

        Without a gradient and without noise; groups that are not named stay as they are."""
        masks = self.opened()
        for name, mask in (opened or {}).items():
            if name not in masks or mask.dtype != torch.bool or mask.shape != masks[name].shape:
                wanted = f"bool of shape {tuple(masks[name].shape)}" if name in masks else "of no such group"
                raise ValueError(
                    f"difflayers.gates.Gated.freeze: argument 'opened'[{name!r}] must be {wanted}, "
                    f"got {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}; the groups are "
                    f"{', '.join(masks)}"
                )
            masks[name] = mask.to(masks[name].device).clone()
        self.frozen = masks

    def unfreeze(self) -> None:
        """Lets the gates' weights decide again."""
        self.frozen = None

    def masked(self, values: dict[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
        """The parameters that meet gated channels, multiplied by the gates' values; `model` as for `bound`."""
        parameters = dict((self.model if model is None else model).named_parameters(remove_duplicate=False))
        padded = {name: torch.cat([value, value.new_ones(1)]) for name, value in values.items()}
        result = {}
        for name, places in self._masked.items():
            parameter = parameters[name]
            for dim, group in places:
                mask = padded[group].to(parameter.dtype).index_select(0, getattr(self, _key(name, dim, group)))
                parameter = masked_along(parameter, mask, dim)
            result[name] = parameter
        return result

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output with the gated channels."""
        return self.call(self.values(), args, kwargs)

    def call(self, values: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
        """The model's output with gates of these values."""
        return self.bound(values)(*args, **kwargs)

    def bound(self, values: dict[str, Tensor], model: nn.Module | None = None) -> Callable[..., Any]:
        """The model with gates of these values, to be called once or several times.

        `model`: a copy to be run in its place, in another precision say."""
        run = self.model if model is None else model
        masked = self.masked(values, model)
        norms = self._norms(values)

        def call(*args: Any, **kwargs: Any) -> Any:
            with flat_weights(run, masked), norms_of(norms, means=self.analysis.means):
                return functional_call(run, masked, args, kwargs)

        return call

    def _norms(self, values: dict[str, Tensor]) -> list[Tensor | None]:
        """The masks of each norm's statistics."""
        if not any(self.analysis.norms):
            return [None] * len(self.analysis.norms)
        padded = {name: torch.cat([value, value.new_ones(1)]) for name, value in values.items()}
        norms: list[Tensor | None] = []
        for i, places in enumerate(self.analysis.norms):
            mask = None
            for name, _ in places:
                part = padded[name][getattr(self, _key("norm", i, name))]
                mask = part if mask is None else mask * part
            norms.append(mask)
        return norms

    def opened(self) -> dict[str, Tensor]:
        """Which units of each group are open for good, bool."""
        if self.frozen is not None:
            return {name: mask.clone() for name, mask in self.frozen.items()}
        return {name: gate.opened() for name, gate in self.gates.items()}  # pyright: ignore[reportCallIssue]

    def cost(self, kind: str = "flops", values: dict[str, Tensor] | None = None) -> Tensor:
        """FLOPs of the example, or parameters, of what the gates leave, with a gradient by their openness."""
        terms = self._terms(kind)
        if values is None:
            values = self.openness()
        total = torch.zeros((), dtype=torch.float64)
        for term in terms:
            product: Any = term.amount
            for factor in term.factors:
                share: Any = factor.constant
                for name, counts in factor.counts.items():
                    share = share + (counts.to(values[name].device) * values[name].double()).sum()
                product = product * (share / factor.whole)
            total = total + product
        return total

    def _terms(self, kind: str) -> list[Term]:
        _checks.choice("difflayers.gates", "kind", kind, ("flops", "parameters"))
        return self.analysis.flops if kind == "flops" else self.analysis.parameters

    def full_cost(self, kind: str = "flops") -> float:
        """FLOPs of the example, or parameters, of the dense model."""
        return sum(term.amount for term in self._terms(kind))


def attach(
    model: nn.Module,
    example_inputs: Any,
    example_kwargs: dict[str, Any] | None = None,
    *,
    unknown: str = "raise",
    inexact: str = "refuse",
    branches: str = "keep",
    gate: Callable[[int], Gate] = TrainableGate,
) -> Gated:
    """Finds what can be removed from a model, and puts a gate on every group of it.

    The model is run on tensors without data (where that fails, `torch.export` traces it); what happens to every single
    channel is followed through the graph, so that channels of different layers that can only vanish together (residual
    streams, batch norms, both halves of a gated linear unit, the heads of attention) become one unit, and units that
    occupy the same places one group with one gate. Model outputs are never gated. Needs no gradients: frozen models can
    be gated.

    Args:
        model: any module without control flow that depends on values. It is used as it is, not copied.
        example_inputs: a tensor, or a tuple of the forward's arguments.
        example_kwargs: its keyword arguments.
        unknown: "raise" for an operation that is not understood, or "skip" to leave what touches it as it is
            (`gated.analysis.unknown` says which); it is never taken for element-wise.
        inexact: "refuse" leaves out channels over which statistics are taken (LayerNorm streams); "allow" gates them
            too, and takes the statistics of the gated model's `layer_norm` and `rms_norm`, and means over channels (of
            norms written by hand), over open channels alone.
        branches: "keep", or "gate": every residual branch f of x + f(x) gets a gate of one entry too. Closed, it means
            that the branch does not exist: its last weights and biases (a layer scale before a linear layer or norm)
            are zero, and `prune` takes all of it out. Branches that cannot be taken out so (they end in a norm without
            weights, in an LSTM; their weights are used elsewhere) stay, and `gated.analysis.unknown` says why.
        gate: makes a gate of n entries.

    Returns:
        `Gated`, to be called and trained in the model's place; `difflayers.gates.prune` makes it small.

    Raises:
        UnsupportedOperationError: the model cannot be traced, an operation is not understood, or a group cannot be
            removed because the model's code holds its size (found by a trial on a copy).
        ValueError: nothing can be removed, or an argument is out of its range.

    Cost, transforms:
        Two runs of the model without arithmetic: the second has half of everything closed, and its graph must be the
        first's with the right sizes. Where that cannot be told from the graphs, trials in float64, as `prune` verifies.
        Training costs one product of each gated weight that has closed channels, forward and backward, and one pass
        over every gated weight for the gradients of the gates.

    References:
        Kim, Park, Jung, Choe, AAAI 2020, arXiv 1904.10921.

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid(), nn.Flatten(), nn.Linear(8 * 36, 2))
        >>> gated = dl.gates.attach(net, torch.randn(1, 1, 8, 8))
        >>> {name: gate.n for name, gate in gated.gates.items()}
        {'0': 8}
    """
    name = "difflayers.gates.attach"
    _checks.choice(name, "unknown", unknown, ("raise", "skip"))
    _checks.choice(name, "inexact", inexact, ("refuse", "allow"))
    _checks.choice(name, "branches", branches, ("keep", "gate"))
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: argument 'model' must be a torch.nn.Module, got {type(model).__name__}")
    args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    kwargs = dict(example_kwargs or {})
    if any(isinstance(value, nn.utils.rnn.PackedSequence) for value in (example_inputs, *args, *kwargs.values())):
        raise UnsupportedOperationError(
            f"{name}: argument 'example_inputs' has a PackedSequence, whose rows belong to no shape; give the padded "
            f"tensor and the lengths, and pack them in the model's forward"
        )
    options = {"allow_inexact": inexact == "allow", "branches": branches == "gate"}
    analysis, trace = analysed(model, args, kwargs, skip_unknown=unknown == "skip", **options)
    _some(name, analysis)
    example = copy.deepcopy((args, kwargs))
    gated = Gated(model, analysis, gate, example)
    from ._trial import dense, stuck, stuck_branches  # which imports this module

    outside = _held_outside(gated)
    if outside and unknown == "raise":
        raise UnsupportedOperationError(
            f"{name}: group '{next(iter(outside))}' cannot have a gate: {next(iter(outside.values()))}; use it through "
            f"the module that owns it, or pass unknown='skip' to leave {', '.join(map(repr, outside))} as they are"
        )
    fixed = stuck(gated, trace) | outside
    whole = stuck_branches(gated, fixed)
    analysis = analysis._replace(groups=list(gated.groups.values()))
    if not fixed and not whole:
        return gated
    if fixed and unknown == "raise":  # of a trial: what is held outside has been refused
        raise UnsupportedOperationError(
            f"{name}: group '{next(iter(fixed))}' cannot be removed: in a trial, {next(iter(fixed.values()))}; write "
            f"sizes as -1, as the shapes of tensors or as integer attributes of the module, or pass unknown='skip' to "
            f"leave {', '.join(map(repr, fixed))} as they are"
        )
    return Gated(model, _some(name, dense(analysis, fixed | whole)), gate, example)


def _held_outside(gated: Gated) -> dict[str, str]:
    """The groups whose gates the model would not meet: it holds their parameters in attributes of its own, too."""
    names = {id(parameter): name for name, parameter in gated.model.named_parameters()}
    held = {
        names[id(leaf)]: f"parameter '{names[id(leaf)]}' is also held by attribute '{attribute}' of a module"
        for module in gated.model.modules()
        for attribute, value in vars(module).items()
        if attribute not in ("_parameters", "_buffers", "_modules", "_flat_weights")
        for leaf in tree_leaves(value)
        if id(leaf) in names
    }
    return {group.name: held[name] for group in gated.analysis.groups for name, _ in group.consumers if name in held}


def _some(name: str, analysis: Analysis) -> Analysis:
    if not analysis.groups:
        raise ValueError(
            f"{name}: argument 'model' has no channels that can be removed without changing what the others compute; "
            f"outputs, inputs and (with inexact='refuse') what statistics are taken over stay whole"
        )
    return analysis


def _key(name: str, dim: int, group: str) -> str:
    return f"_units_{name.replace('.', '__')}_{dim}_{group}"
