"""Which points make a minimal sample, one sampler a file."""

from .base import Sampler
from .uniform import Uniform

__all__ = ["Sampler", "Uniform"]
