"""What was removed from a model, to be kept, and to be done again."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._branches import closed_parts
from ._plan_files import read_weights, write_weights
from .attach import Gated
from .cost import checked
from .prune import PruningError, cut, prune, staying
from .removed import GIVES, Part, take_out

__all__ = ["PrunePlan", "plan"]

VERSION = 2


class PrunePlan(NamedTuple):
    """What stays of every parameter, as plain numbers; made by `difflayers.gates.plan`.

    Attributes:
        shapes: of the parameters and buffers that change, in the dense model, by name.
        kept: by name and dimension, the indices that stay, ascending.
        sizes: what modules remember, beyond what their weights say: (module, attribute, value).
        groups: by group, the units that stay.
        weights: the state dict of the pruned model; None: the plan alone.
        removed: of residual branches, what is taken out: (path, what it gives then, number of outputs).

    Raises:
        ValueError: (of `load`) the file is no plan; (of `apply`) the model has other shapes.

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> make = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> gated = dl.gates.attach(make(), torch.randn(1, 4))
        >>> gated.gates["0"].weight.data[3:] = -1
        >>> plan = dl.gates.plan(gated)
        >>> plan.kept["2.weight"]
        {1: [0, 1, 2]}
        >>> x = torch.randn(5, 4)
        >>> bool((plan.apply(make())(x) == dl.gates.prune(gated)(x)).all())
        True
    """

    shapes: dict[str, tuple[int, ...]]
    kept: dict[str, dict[int, list[int]]]
    sizes: list[tuple[str, str, Any]]
    groups: dict[str, list[int]]
    weights: dict[str, Tensor] | None = None
    removed: tuple[Part, ...] = ()

    def apply(self, model: nn.Module, *, load_weights: bool = True) -> nn.Module:
        """A smaller copy of a dense model of the same kind: with the plan's weights where it has some, or
        (`load_weights=False`: an average of weights, say) with what stays of the model's own."""
        name = "difflayers.gates.PrunePlan.apply"
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: argument 'model' must be a torch.nn.Module, got {type(model).__name__}")
        tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        self._checked(name)
        for key, shape in self.shapes.items():
            if key not in tensors or tuple(tensors[key].shape) != shape:
                came = f"shape {tuple(tensors[key].shape)}" if key in tensors else "none of this name"
                raise ValueError(f"{name}: argument 'model' must have '{key}' of shape {shape}, got {came}")
        small = cut(
            model, {key: {dim: torch.tensor(at) for dim, at in dims.items()} for key, dims in self.kept.items()}
        )
        try:
            take_out(small, self.removed)
        except (AttributeError, KeyError) as error:
            raise ValueError(f"{name}: argument 'model' must have what the plan takes out: {error}") from error
        for path, attribute, value in self.sizes:
            module = small.get_submodule(path)
            if not _whole(getattr(module, attribute, None)):  # a plan rewrites sizes, and nothing else
                raise ValueError(f"{name}: argument 'model' must have a size '{attribute}' in module '{path}'")
            setattr(module, attribute, value)
        if load_weights and self.weights is not None:
            try:
                small.load_state_dict(self.weights)
            except RuntimeError as error:
                raise ValueError(f"{name}: the plan's weights must be those of the pruned model: {error}") from error
        return small

    def _checked(self, name: str) -> None:
        """Plans come from files: indices must be of their dimensions, sizes numbers."""
        for key, dims in self.kept.items():
            shape = self.shapes.get(key, ())
            for dim, at in dims.items():
                if not 0 <= dim < len(shape) or any(not 0 <= i < shape[dim] for i in at):
                    raise ValueError(f"{name}: the plan keeps indices of '{key}' that shape {shape} does not have")
        for path, attribute, value in self.sizes:
            if not _whole(value):
                raise ValueError(
                    f"{name}: the plan's size '{attribute}' of module '{path}' must be integers, got {value!r}"
                )

    def save(self, path: str | Path) -> list[Path]:
        """Writes the plan as JSON, and its weights beside it: as `.safetensors` where that package is installed, else
        as `.pt` of `torch.save`, which is read with `weights_only=True`. Returns the paths written."""
        path = Path(path)
        written, weights = [path], None
        if self.weights is not None:
            weights = write_weights(self.weights, path)
            written.append(weights)
        content = {
            "format": "difflayers.PrunePlan", "version": VERSION, "weights": weights and weights.name,
            "groups": self.groups, "shapes": self.shapes, "kept": self.kept,
            "sizes": [(module, name, _plain(value)) for module, name, value in self.sizes], "removed": self.removed,
        }  # fmt: skip
        path.write_text(json.dumps(content, indent=1))
        return written

    @classmethod
    def load(cls, path: str | Path) -> PrunePlan:
        """Reads what `save` wrote; nothing in it is executed."""
        path = Path(path)
        try:
            content = json.loads(path.read_text())
            if content["format"] != "difflayers.PrunePlan" or content["version"] != VERSION:
                raise KeyError(f"format {content['format']} {content['version']}")
            name = content["weights"]
            if name is not None and not isinstance(name, str):
                raise TypeError(f"weights {name!r}")
            kept = {
                key: {int(d): list(map(int, at)) for d, at in dims.items()} for key, dims in content["kept"].items()
            }
            result = cls(
                {key: tuple(shape) for key, shape in content["shapes"].items()},
                kept,
                [(module, attribute, _back(value)) for module, attribute, value in content["sizes"]],
                content["groups"],
                removed=tuple(_part(*each) for each in content["removed"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"difflayers.gates.PrunePlan.load: '{path}' must be a plan of version {VERSION}, "
                f"got {type(error).__name__}: {error}"
            ) from error
        if name is None:
            return result
        beside = path.with_name(Path(name).name)  # never outside of the plan's folder
        return result._replace(weights=read_weights("difflayers.gates.PrunePlan.load", beside))

    def transfer_optimizer(
        self, optimizer: torch.optim.Optimizer, old_model: nn.Module, new_model: nn.Module
    ) -> torch.optim.Optimizer:
        """An optimizer of the same class for the pruned model, that goes on where the old one was: settings, and what
        stays of the momenta of every entry that stays.

        Args:
            optimizer: of `old_model`'s parameters. Those of gates are left out; others that are not the model's stay.
            old_model: the dense model, or the gated one.
            new_model: of `prune` or `apply`.

        Returns:
            A new optimizer. Schedulers are to be made anew for it (`last_epoch` continues them).

        Raises:
            ValueError: the state of a parameter is not of its shape (factored or flattened states).
        """
        name = "difflayers.gates.PrunePlan.transfer_optimizer"
        dense = old_model.model if isinstance(old_model, Gated) else old_model
        gates = {id(p) for p in old_model.gates.parameters()} if isinstance(old_model, Gated) else set()
        names = {id(parameter): key for key, parameter in dense.named_parameters()}
        fresh = dict(new_model.named_parameters())
        groups, state = [], {}
        for group in optimizer.param_groups:
            parameters = []
            for old in group["params"]:
                if id(old) in gates:
                    continue
                key = names.get(id(old))
                if key is not None and any(f"{key}.".startswith(f"{part.path}.") for part in self.removed):
                    continue
                if key is not None and key not in fresh:
                    raise ValueError(f"{name}: argument 'new_model' must have the parameter '{key}'; was it pruned so?")
                new = old if key is None else fresh[key]
                parameters.append(new)
                if old in optimizer.state:
                    dims = {} if key is None else self._dims(key, dense)
                    state[new] = {
                        what: self._moved(name, what, value, old, dims) for what, value in optimizer.state[old].items()
                    }
            if parameters:
                groups.append({**group, "params": parameters})
        accepted = inspect.signature(type(optimizer).__init__).parameters
        result = type(optimizer)(groups, **{key: v for key, v in optimizer.defaults.items() if key in accepted})
        result.state.update(state)
        return result

    def _dims(self, key: str, model: nn.Module) -> dict[int, list[int]]:
        """What stays of a parameter, under any of the names that it is tied to."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tied = [other for other in self.kept if other in parameters and parameters[other] is parameters[key]]
        return self.kept[tied[0]] if tied else {}

    def _moved(self, name: str, what: str, value: Any, old: Tensor, dims: dict[int, list[int]]) -> Any:
        tensor = isinstance(value, Tensor)
        if dims and (isinstance(value, (list, tuple, dict)) or (tensor and value.dim() and value.shape != old.shape)):
            came = f"shape {tuple(value.shape)}" if tensor else type(value).__name__
            raise ValueError(
                f"{name}: the state '{what}' must be a number or of the parameter's shape {tuple(old.shape)}, "
                f"got {came}; start a new optimizer"
            )
        if not tensor:
            return copy.deepcopy(value)
        if value.dim():
            for dim, at in dims.items():
                value = value.index_select(dim, torch.tensor(at, device=value.device))
        return value.clone()


def plan(gated: Gated, *, weights: bool = True) -> PrunePlan:
    """What `prune` would remove now, verified as it does.

    Args:
        gated: of `difflayers.gates.attach`.
        weights: keeps the pruned model's state dict in the plan.

    Returns:
        A `PrunePlan`.

    Raises:
        PruningError, ValueError: as `prune`.

    Cost, transforms:
        As `prune`.

    References:
        None.

    Example:
        >>> import torch, difflayers as dl
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> gated = dl.gates.attach(net, torch.randn(1, 4))
        >>> gated.gates["0"].weight.data[1:] = -1
        >>> dl.gates.plan(gated).groups
        {'0': [0]}
    """
    gated = checked("difflayers.gates.plan", gated)
    small = prune(gated)
    opened = {name: mask.cpu() for name, mask in gated.opened().items()}
    kept = staying(gated, opened)
    tensors: dict[str, Tensor] = dict(gated.model.named_parameters(remove_duplicate=False))
    tensors |= dict(gated.model.named_buffers(remove_duplicate=False))
    result = PrunePlan(
        {name: tuple(tensors[name].shape) for name, dims in kept.items() if dims},
        {name: {dim: at.tolist() for dim, at in dims.items()} for name, dims in kept.items() if dims},
        [],
        {name: mask.nonzero().squeeze(-1).tolist() for name, mask in opened.items()},
        removed=tuple(closed_parts(gated.groups, opened)),
    )
    result = result._replace(sizes=_differences(result.apply(gated.model), small))
    state = {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in small.state_dict().items()
    }
    replayed = result.apply(gated.model)
    if _differences(replayed, small) or any(
        name not in state
        or (not torch.equal(value, state[name]) if isinstance(value, Tensor) else value != state[name])
        for name, value in replayed.state_dict().items()
    ):
        raise PruningError("difflayers.gates.plan: the pruned model cannot be made again from its plan")
    return result._replace(weights=state) if weights else result


def _differences(model: nn.Module, wanted: nn.Module) -> list[tuple[str, str, Any]]:
    """The numbers, and tuples of them, that the modules of `wanted` remember otherwise."""
    result = []
    for path, module in wanted.named_modules():
        for name, value in vars(module).items():
            if _whole(value) and getattr(model.get_submodule(path), name, None) != value:
                result.append((path, name, value))
    return result


def _whole(value: Any) -> bool:
    """Whether this is an integer, or a tuple or list of them."""
    return type(value) is int or (type(value) in (tuple, list) and all(type(v) is int for v in value))


def _part(path: str, gives: str, outputs: int) -> Part:
    if gives not in GIVES:
        raise ValueError(f"a removed part that gives {gives!r}")
    return Part(str(path), gives, int(outputs))


def _plain(value: Any) -> Any:
    """JSON knows no tuples."""
    return {"tuple": list(value)} if isinstance(value, tuple) else value


def _back(value: Any) -> Any:
    return tuple(value["tuple"]) if isinstance(value, Mapping) else value
