"""k of n: differentiable top-k selection and subset sampling, all with one signature.

`f(logits, k, temperature=1.0, *, <own options>, hard=False, dim=-1, generator=None)` gives the membership
`[..., n]`, whose entries sum to k; every function is a module in CamelCase too. `soft_sort` and `soft_rank` are the
projections that `projection_topk` belongs to.
"""

from .conditional_bernoulli import marginals, sample_subset, subset_entropy, subset_log_prob
from .gumbel import GumbelTopK, gumbel_topk
from .lapsum import LapSumTopK, lapsum_topk
from .network import NetworkTopK, network_topk
from .neuralsort import NeuralSortTopK, neuralsort, neuralsort_topk
from .optimal_transport import OptimalTransportTopK, optimal_transport_topk
from .perturbed import PerturbedTopK, perturbed_topk
from .projections import (
    PermutahedronRank,
    PermutahedronSort,
    ProjectionTopK,
    projection_topk,
    soft_rank,
    soft_sort,
)
from .simple import Simple, simple
from .softsort import SoftSortTopK, softsort, softsort_topk

__all__ = [
    "GumbelTopK",
    "LapSumTopK",
    "NetworkTopK",
    "NeuralSortTopK",
    "OptimalTransportTopK",
    "PermutahedronRank",
    "PermutahedronSort",
    "PerturbedTopK",
    "ProjectionTopK",
    "Simple",
    "SoftSortTopK",
    "gumbel_topk",
    "lapsum_topk",
    "marginals",
    "network_topk",
    "neuralsort",
    "neuralsort_topk",
    "optimal_transport_topk",
    "perturbed_topk",
    "projection_topk",
    "sample_subset",
    "simple",
    "soft_rank",
    "soft_sort",
    "softsort",
    "softsort_topk",
    "subset_entropy",
    "subset_log_prob",
]
