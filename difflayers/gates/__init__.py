"""Keeping or dropping: trainable gates on the channels of a model, and the surgery that makes it smaller."""

from .attach import Gated, attach
from .budget import BudgetLoss
from .cost import Cost
from .fit import FitRecord, FitResult, fit, recalibrate_batch_norm
from .gate import BernoulliGate, Gate, HardConcreteGate, TrainableGate
from .latency import measure_latency
from .multihead import SlimMultiheadAttention
from .plan import PrunePlan, plan
from .project import Projection, project
from .prune import PruningError, prune
from .removed import RemovedBranch
from .report import Report, report
from .selection import area_loss, importance_by_magnitude, importance_by_masking

__all__ = [
    "BernoulliGate",
    "BudgetLoss",
    "Cost",
    "FitRecord",
    "FitResult",
    "Gate",
    "Gated",
    "HardConcreteGate",
    "Projection",
    "PrunePlan",
    "PruningError",
    "RemovedBranch",
    "Report",
    "SlimMultiheadAttention",
    "TrainableGate",
    "area_loss",
    "attach",
    "fit",
    "importance_by_magnitude",
    "importance_by_masking",
    "measure_latency",
    "plan",
    "project",
    "prune",
    "recalibrate_batch_norm",
    "report",
]
