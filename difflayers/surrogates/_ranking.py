"""What the learning-to-rank losses share."""

from __future__ import annotations

from torch import Tensor

from ._loss import companion
from ._pool import PoolLoss


class RankingLoss(PoolLoss):
    """Base of the losses that rank a pool: objectives of its solutions by predicted and by true costs."""

    def _objectives(self, predicted_costs: Tensor, true_costs: Tensor) -> tuple[Tensor, Tensor]:
        """Both `[..., P]`."""
        predicted = self._costs("predicted_costs", predicted_costs)
        true = companion(self.name, "true_costs", true_costs, predicted)
        pool = self._grown(predicted)
        return self._rows(predicted) @ pool.T, self._rows(true) @ pool.T
