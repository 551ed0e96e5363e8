"""The losses that PyEPO has too: the same values and gradients."""

import numpy as np
import pytest
import torch

from difflayers import surrogates

from ..tolerances import assert_near
from .polytopes import SETS, enumerated, gradient, rows_of, values

pyepo = pytest.importorskip("pyepo", exc_type=ImportError)

VERTICES = SETS["paths"]


def peer_model():
    from pyepo.model.opt import optModel

    class Model(optModel):
        """Enumeration in PyEPO's clothes."""

        def _getModel(self):
            return None, range(VERTICES.shape[1])

        def setObj(self, c):
            self.costs = np.asarray(c, dtype=float)

        def solve(self):
            found = VERTICES.numpy()[(VERTICES.numpy() @ self.costs).argmin()]
            return found, float(found @ self.costs)

    return Model()


def dataset():
    """What PyEPO's pool losses take their first pool from."""

    class Data(pyepo.data.dataset.optDataset):
        def __init__(self):
            self.sols = VERTICES.clone()

    return Data()


def compare(ours, theirs, predicted, factor=1.0):
    assert_near(ours(predicted), theirs(predicted), factor=factor)
    assert_near(gradient(ours, predicted), gradient(theirs, predicted), factor=factor)


def test_spo_plus_and_perturbation_gradient():
    predicted, true, best = rows_of(VERTICES, 20)
    objective = (true * best).sum(1, keepdim=True)
    peer, oracle = peer_model(), enumerated(VERTICES)
    theirs = pyepo.func.SPOPlus(peer, reduction="none")
    ours = surrogates.SPOPlus(oracle, reduction="none")
    compare(lambda p: ours(p, true), lambda p: theirs(p, true, best, objective), predicted)
    for side, two_sides in (("backward", False), ("central", True)):
        theirs = pyepo.func.perturbationGradient(peer, sigma=0.2, two_sides=two_sides, reduction="none")
        ours = surrogates.PerturbationGradient(oracle, width=0.2, side=side, reduction="none")
        # PyEPO adds 1e-7 to the step
        compare(lambda p, f=ours: f(p, true), lambda p, f=theirs: f(p, true), predicted, factor=1e7)


@pytest.mark.parametrize("perturbation", ["additive", "multiplicative"])
def test_perturbed_fenchel_young_in_expectation(perturbation):
    predicted, _, best = rows_of(VERTICES, 3)
    predicted = predicted.abs() + 0.1
    kind = {"additive": pyepo.func.perturbedFenchelYoung, "multiplicative": pyepo.func.perturbedFenchelYoungMul}
    theirs = kind[perturbation](peer_model(), n_samples=3000, sigma=0.5, reduction="none")
    ours = surrogates.FenchelYoung(
        enumerated(VERTICES), perturbation=perturbation, samples=3000, sigma=0.5, reduction="none"
    )
    # two independent estimates from 3000 samples each, of standard deviations up to 1
    error = 4 * (2 / 3000) ** 0.5
    assert (ours(predicted, best) - theirs(predicted, best)).abs().max() < 2 * error
    difference = gradient(lambda p: ours(p, best), predicted) - gradient(lambda p: theirs(p, best), predicted)
    assert difference.abs().max() < error


def test_pool_losses():
    predicted, true, best = rows_of(VERTICES, 20)
    peer = peer_model()
    for theirs, ours in (
        (pyepo.func.NCE, surrogates.NCE),
        (pyepo.func.CMAP, surrogates.ContrastiveMAP),
    ):
        a, b = theirs(peer, dataset=dataset(), reduction="none"), ours(VERTICES, reduction="none")
        compare(lambda p, b=b: b(p, best), lambda p, a=a: a(p, best), predicted)
    for theirs, ours in (
        (pyepo.func.ptLTR, surrogates.PointwiseRanking),
        (pyepo.func.prLTR, surrogates.PairwiseRanking),
        (pyepo.func.lsLTR, surrogates.ListwiseRanking),
    ):
        a, b = theirs(peer, dataset=dataset(), reduction="none"), ours(VERTICES, reduction="none")
        compare(lambda p, b=b: b(p, true), lambda p, a=a: a(p, true), predicted, factor=1e6)  # PyEPO clamps at 1e-8


def test_regret():
    predicted, true, _ = rows_of(VERTICES, 20)
    theirs = pyepo.metric.SPOError(predicted.numpy(), true.numpy(), peer_model())
    assert values(VERTICES, true).min() < 0  # the optima's signs differ, and magnitudes count
    # PyEPO adds 1e-7 to the denominator
    assert surrogates.normalized_regret(predicted, true, enumerated(VERTICES)).item() == pytest.approx(theirs, rel=1e-6)


def test_average_cone_target():
    predicted, _, _ = rows_of(VERTICES, 20)
    best = VERTICES[torch.arange(20) % len(VERTICES)]
    normals = torch.stack([torch.diag(2 * x - 1) for x in best])  # of 0 <= x <= 1
    theirs = pyepo.func.CaVE(peer_model(), solve_ratio=0.0, inner_ratio=0.2, reduction="none")
    ours = surrogates.CaVE(bounds=(0, 1), cost_shape=(12,), projection="average", reduction="none")
    compare(lambda p: ours(p, best), lambda p: theirs(p, normals), predicted, factor=1e6)  # it divides by 1e-8 and more


def test_converged_cone_projection():
    predicted, _, _ = rows_of(VERTICES, 20)
    best = VERTICES[torch.arange(20) % len(VERTICES)]
    normals = torch.stack([torch.diag(2 * x - 1) for x in best])
    theirs = pyepo.func.CaVE(peer_model(), max_iter=100, reduction="none")
    ours = surrogates.CaVE(bounds=(0, 1), cost_shape=(12,), projection="exact", reduction="none")
    assert (
        ours(predicted, best) - theirs(predicted, normals)
    ).abs().max() < 1e-4  # an interior-point method in float32
