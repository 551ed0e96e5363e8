"""A budget as a loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import _checks
from .attach import Gated
from .cost import Cost
from .latency import Table

__all__ = ["SCHEDULES", "BudgetLoss"]

SCHEDULES = ("constant", "gradual", "growing", "progressive")


class BudgetLoss(nn.Module):
    r"""What a model with gates costs above its budget.

    $$L = \lambda\, \max(0,\; C(z) / C_{full} - \tau)^p$$

    with p = 1 ("linear") or 2 ("squared"); the share $C(z) / C_{full}$ is that of `difflayers.gates.Cost` at the gates'
    openness z. A loss alone does not meet a budget, and under it whole layers close where channels are dear:
    `normalise="group"` scales the gradients so that the mean unit of every group is pressed equally hard, and
    `difflayers.gates.project` makes the budget exact in the end.

    Args:
        gated: of `difflayers.gates.attach`.
        target: the share $\tau$ of the dense model's cost, in (0, 1].
        kind: "flops", "parameters" or "latency".
        table: for "latency": seconds by module path, see `difflayers.gates.measure_latency`; None measures now.
        weight: $\lambda$, positive.
        penalty: "squared" or "linear".
        normalise: "group", or "none" for the plain gradient.
        schedule: what changes at each call of `step()`. "constant": nothing. "gradual": the target falls from 1 to
            $\tau$ in `steps` calls, linearly. "growing": the target is $\tau$ from the start, and $\lambda$ is
            multiplied by `growth` when the share fell by less than $(1 - \tau) / $ `steps`, and divided by it when it
            fell faster. "progressive": the target falls as in "gradual", and $\lambda$ is multiplied by `growth` only
            while the share is above it, and divided while it is not. $\lambda$ stays between `weight` and a million
            times that.
        steps: of the schedule, at least 1.
        growth: of $\lambda$ in a call, above 1.

    Returns:
        Of a call without arguments: the loss, a scalar of the gates' dtype. `share` is the model's share at the
        last call.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Cost, transforms:
        As `difflayers.gates.Cost`: small beside a step of training. State dict: the schedule's.

    References:
        Kim, Park, Jung, Choe, AAAI 2020, arXiv 1904.10921 (the loss); Bi, Xie, Chen, Wei, Tian, "GOLD-NAS: Gradual,
        One-Level, Differentiable", 2020, arXiv 2007.03331 (a weight that follows how fast the cost falls, and a network
        that shrinks step by step).

    Example:
        >>> import torch, difflayers as dl
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> gated = dl.gates.attach(net, torch.randn(1, 4))
        >>> budget = dl.gates.BudgetLoss(gated, 0.5, weight=4.0)
        >>> loss = budget()
        >>> loss.backward()
        >>> loss.item(), budget.share, gated.gates["0"].weight.grad[0].item()
        (1.0, 1.0, 0.5)
    """

    def __init__(
        self,
        gated: Gated,
        target: float,
        *,
        kind: str = "flops",
        table: Table | None = None,
        weight: float = 4.0,
        penalty: str = "squared",
        normalise: str = "group",
        schedule: str = "constant",
        steps: int = 1000,
        growth: float = 1.05,
    ) -> None:
        super().__init__()
        name = "difflayers.gates.BudgetLoss"
        self.target = _checks.number(name, "target", target, above=0, maximum=1)
        self.initial_weight = self.weight = _checks.number(name, "weight", weight, above=0)
        self.penalty = _checks.choice(name, "penalty", penalty, ("squared", "linear"))
        self.normalise = _checks.choice(name, "normalise", normalise, ("group", "none"))
        self.schedule = _checks.choice(name, "schedule", schedule, SCHEDULES)
        self.steps = _checks.integer(name, "steps", steps, minimum=1)
        self.growth = _checks.number(name, "growth", growth, above=1)
        self.cost = Cost(gated, kind, table)
        self.steps_done, self.share = 0, float(self.cost(gated.openness()).detach())
        self._before = self.share
        self._scale = self._scales()

    def _scales(self) -> dict[str, float]:
        """The factor of each group's gradient: with them, all groups' mean gradients are equal at the dense model."""
        slopes = {name: float(slope.mean()) for name, slope in self.cost.marginal().items()}
        if self.normalise == "none":
            return dict.fromkeys(slopes, 1.0)
        units = sum(self.cost.sizes.values())
        mean = sum(slopes[name] * size for name, size in self.cost.sizes.items()) / units
        return {name: mean / slope if slope > 0 else 1.0 for name, slope in slopes.items()}

    @property
    def current_target(self) -> float:
        """The target now."""
        if self.schedule not in ("gradual", "progressive"):
            return self.target
        return 1 - (1 - self.target) * min(1.0, self.steps_done / self.steps)

    def forward(self) -> Tensor:
        """The loss."""
        values = self.cost.gated.openness()
        scaled = {name: z.detach() + (z - z.detach()) * self._scale[name] for name, z in values.items()}
        share = self.cost(scaled)
        self.share = share.detach()
        excess = (share - self.current_target).clamp(min=0)
        loss = self.weight * (excess if self.penalty == "linear" else excess.square())
        return loss.to(next(iter(values.values())).dtype)

    @property
    def share(self) -> float:
        """The model's share of the dense cost at the last call."""
        return float(self._share)

    @share.setter
    def share(self, value: Any) -> None:
        self._share = value  # a tensor until it is asked for: no wait for the device in every step

    def step(self) -> None:
        """Moves the schedule on; to be called after each step of training."""
        if self.schedule in ("growing", "progressive"):
            share = self.share
            fine = share <= self.current_target
            if self.schedule == "growing":
                fine = fine or self._before - share >= (1 - self.target) / self.steps
            weight = self.weight / self.growth if fine else self.weight * self.growth
            # a share that cannot fall would let it grow without end
            self.weight = min(max(self.initial_weight, weight), 1e6 * self.initial_weight)
            self._before = share
        self.steps_done += 1

    def get_extra_state(self) -> dict[str, Any]:
        """What the schedule changes."""
        return {"steps_done": self.steps_done, "weight": self.weight, "before": self._before}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Goes back to where it was taken."""
        self.steps_done, self.weight, self._before = state["steps_done"], state["weight"], state["before"]

    def extra_repr(self) -> str:
        """The settings, as repr shows them."""
        return (
            f"target={self.target:g}, kind={self.cost.kind!r}, weight={self.weight:g}, penalty={self.penalty!r}, "
            f"normalise={self.normalise!r}, schedule={self.schedule!r}"
        )
