"""What a model provides is what RANSAC asks it for: our own satisfy the protocol, and so may others."""

import pytest
import torch

import difflayers as dl
from difflayers import protocols

MEMBERS = ("sample_size", "point_size", "model_shape", "max_solutions", "worst_condition", "kernel", "problem",
           "freedom", "solve", "residual", "squared_residual", "residual_vector", "retract", "fit", "degenerate",
           "plausible", "possible", "repair")  # fmt: skip
SOLVERS = (dl.ransac.Line2D, dl.ransac.Circle2D, dl.ransac.Plane3D, dl.ransac.RigidTransform3D, dl.ransac.Homography,
           dl.ransac.FundamentalMatrix, dl.ransac.EssentialMatrix, dl.ransac.AbsolutePose)  # fmt: skip


class Stranger:
    """A line that inherits nothing from difflayers."""

    def __init__(self, without=()):
        for name in MEMBERS:
            if name not in without:
                setattr(self, name, getattr(dl.ransac.Line2D(), name))


@pytest.mark.parametrize("kind", SOLVERS)
def test_solvers(kind):
    assert isinstance(kind(), protocols.MinimalSolver)
    assert not isinstance(dl.oracles.TopK(4, 2), protocols.MinimalSolver)


@pytest.mark.parametrize("training", [False, True])
def test_a_solver_that_inherits_nothing(training):
    points = torch.rand(2, 40, 2, dtype=torch.float64)
    points[:, :25, 1] = 0.3 * points[:, :25, 0] + 0.1
    results = []
    for solver in (Stranger(), dl.ransac.Line2D()):
        assert isinstance(solver, protocols.MinimalSolver)
        layer = dl.ransac.RANSAC(solver, threshold=0.01).train(training)
        results.append(layer(points, generator=torch.Generator().manual_seed(0)))
        dl.ransac.residual_loss(solver, results[-1].model, points, limit=0.1)
    assert torch.equal(results[0].inliers, results[1].inliers)
    torch.testing.assert_close(results[0].model, results[1].model)


def test_solvers_with_something_missing_are_refused():
    for name in MEMBERS:
        assert not isinstance(Stranger(without=[name]), protocols.MinimalSolver)
    with pytest.raises(TypeError, match=r"'model' must be a difflayers\.ransac\.MinimalSolver, got Stranger"):
        dl.ransac.RANSAC(Stranger(without=["repair"]), threshold=1.0)

    class Half(dl.ransac.MinimalSolver):
        sample_size = 2

        def solve(self, sample):
            raise NotImplementedError

        def residual(self, models, points):
            raise NotImplementedError

    with pytest.raises(TypeError, match="got a Half without point_size, model_shape"):
        dl.ransac.RANSAC(Half(), threshold=1.0)
    with pytest.raises(TypeError, match=r"'solver' must be a difflayers\.ransac\.MinimalSolver, got Line2D"):
        dl.ransac.residual_loss(dl.ransac.Line2D, torch.zeros(3), torch.zeros(4, 2), limit=1.0)
