"""What stands in a model where a residual branch was."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import UnsupportedOperationError

__all__ = ["Part", "RemovedBranch", "take_out"]


GIVES = ("zero", "zeros", "input", "number")


class Part(NamedTuple):
    """One thing that is taken out with a branch.

    Attributes:
        path: of a module, or of a parameter that belongs to a module that stays.
        gives: "zero", a number; "zeros" of the shape that the module made; "input", what came in; or "number": a
            parameter becomes the number 0.
        outputs: 0: a module returns a tensor; else a tuple of so many, the others None.
    """

    path: str
    gives: str
    outputs: int = 0


class RemovedBranch(nn.Module):
    """Stands for a module of a residual branch that was removed: without parameters, and without work.

    The last module of a branch gives zero, so that the sum is the shortcut; those before it hand on what comes in.
    Numbers and names that the module remembered (`num_heads`, `batch_first`) are remembered still, for code that asks.

    Args:
        module: what it stands for; not kept.
        gives: "zero", a number; "zeros", of the shape that the module would make (for code that adds in place);
            "input", the first tensor that comes in.
        outputs: 0: a tensor is returned; else a tuple of so many, the others None.

    Returns:
        Of a call with the module's arguments: zero, zeros or the first tensor.

    Raises:
        UnsupportedOperationError: (of a call) no floating-point tensor came in.

    Cost, transforms:
        None, and those of the model around it.

    Example:
        >>> import torch, difflayers as dl
        >>> gone = dl.gates.RemovedBranch(torch.nn.Linear(4, 4), "zero")
        >>> gone(torch.ones(2, 4)), sum(p.numel() for p in gone.parameters())
        (tensor(0.), 0)
    """

    def __init__(self, module: nn.Module, gives: str, outputs: int = 0) -> None:
        super().__init__()
        for name, value in vars(module).items():
            if isinstance(value, (int, float, str, tuple)) and name not in self.__dict__:
                setattr(self, name, value)
        for name in (*module._parameters, *module._buffers):
            setattr(self, name, None)
        self.was, self.gives, self.outputs = type(module).__name__, gives, outputs
        self.training = module.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What stands for the module's output."""
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_floating_point()]
        if not given:
            raise UnsupportedOperationError("difflayers.gates.RemovedBranch: no floating-point tensor came in")
        x = given[0]
        if self.gives == "zero":
            x = x.new_zeros(())
        elif self.gives == "zeros":
            x = x.new_zeros(self._shape(x))
        return (x, *[None] * (self.outputs - 1)) if self.outputs else x

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        """Of what the module made: linear layers and convolutions change shapes, others that stand here do not."""
        known: Any = self
        if self.was == "Linear":
            return (*x.shape[:-1], known.out_features)
        if self.was in ("Conv1d", "Conv2d", "Conv3d"):
            dims = len(known.kernel_size)
            return (*x.shape[: -dims - 1], known.out_channels, *map(self._length, x.shape[-dims:], range(dims)))
        return tuple(x.shape)

    def _length(self, n: int, d: int) -> int:
        known: Any = self
        reach = known.dilation[d] * (known.kernel_size[d] - 1)
        padding = known.padding
        whole = reach if padding == "same" else 0 if padding == "valid" else 2 * padding[d]
        return (n + whole - reach - 1) // known.stride[d] + 1

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return f"was={self.was}, gives={self.gives}"


def shaped(model: nn.Module, parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with zeros of the shapes that the code may count on, in place of a number."""

    def gives(part: Part) -> str:
        if part.gives == "zero":
            return "zeros"
        layer = part.gives == "input" and isinstance(
            model.get_submodule(part.path), (nn.Linear, nn.modules.conv._ConvNd)
        )
        return "zeros" if layer else part.gives

    return tuple(part._replace(gives=gives(part)) for part in parts)


def take_out(model: nn.Module, parts: Iterable[Part]) -> None:
    """Takes a branch out of a model, in place."""
    for part in parts:
        parent, _, name = part.path.rpartition(".")
        owner = model.get_submodule(parent)
        if part.gives == "number":
            del owner._parameters[name]
            setattr(owner, name, 0.0)
            continue
        owner._modules[name] = RemovedBranch(owner._modules[name] or nn.Identity(), part.gives, part.outputs)
        # torch's fused encoder layers read the weights of what is inside them
        if isinstance(owner, nn.TransformerEncoderLayer):
            owner.activation_relu_or_gelu = 0
    if any(isinstance(m, nn.TransformerEncoder) for m in model.modules()):
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder) and _without(module):
                module.use_nested_tensor = False


def _without(model: nn.Module) -> bool:
    return any(isinstance(module, RemovedBranch) for module in model.modules())
