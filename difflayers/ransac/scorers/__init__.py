"""How good a hypothesis is, one score a file."""

from .base import Scorer
from .gaussian_uniform import GaussianUniform
from .inlier_count import InlierCount
from .learned import Learned
from .magsac import MAGSAC
from .msac import MSAC

__all__ = ["MAGSAC", "MSAC", "GaussianUniform", "InlierCount", "Learned", "Scorer"]
