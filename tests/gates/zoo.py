"""The zoo: small models of every topology that gates must get right, with what must be found in them."""

import torch

from . import zoo_images, zoo_sequences  # noqa: F401  (put their models in)
from .zoo_entry import ZOO, Entry

__all__ = ["ZOO", "Entry", "made"]


def made(name: str) -> tuple[torch.nn.Module, tuple]:
    """The model in float64 with nothing trivial in it (biases, running statistics), and its example inputs."""
    torch.manual_seed(1)
    model, example = ZOO[name].make()
    example = example if isinstance(example, tuple) else (example,)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() < 2:
            tensor.uniform_(0.5, 1.5)
    return model.double().eval(), tuple(x.double() if x.is_floating_point() else x for x in example)
