"""Which points make a minimal sample, one sampler a file."""

from .base import Sampler
from .gumbel_top_k import GumbelTopK
from .prosac import PROSAC
from .uniform import Uniform
from .weighted import Weighted

__all__ = ["PROSAC", "GumbelTopK", "Sampler", "Uniform", "Weighted"]
