"""Keeping or dropping: trainable gates on the channels of a model, and the surgery that makes it smaller."""

from .attach import Gated, attach
from .gate import BernoulliGate, Gate, HardConcreteGate, TrainableGate
from .multihead import SlimMultiheadAttention
from .prune import PruningError, prune

__all__ = [
    "BernoulliGate",
    "Gate",
    "Gated",
    "HardConcreteGate",
    "PruningError",
    "SlimMultiheadAttention",
    "TrainableGate",
    "attach",
    "prune",
]
