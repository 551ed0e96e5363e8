"""torch.func: grad, vmap, their compositions, jacrev; forward mode raises instead of returning a wrong number."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import difflayers as dl
from tests.cases import CASES, FUNCTIONS, name_of
from tests.tolerances import assert_near

each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
# settings keep the shapes apart: 3 samples of 5 elements
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
compiled = pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")


def random(*shape):
    return torch.randn(shape, dtype=torch.float64)


def eager_gradient(f, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf), leaf)[0]


@softness
@each_case
def test_grad(case, hard):
    x = random(3, 5)
    f = lambda t: case.run(t, hard=hard).square().sum()  # noqa: E731
    assert_near(grad(f)(x), eager_gradient(f, x), order=1, factor=case.condition)
    _, pull = vjp(f, x)
    assert_near(pull(torch.tensor(2.0).double())[0], 2 * eager_gradient(f, x), order=1, factor=case.condition)


@softness
@pytest.mark.parametrize("in_dim", [0, 1, 2])
@each_case
def test_vmap(case, hard, in_dim):
    x = random(3, 5, 4).movedim(0, in_dim)  # 3 problems, each of 4 elements in 5 rows
    expected = torch.stack([case.run(t, hard=hard) for t in x.unbind(in_dim)])
    assert_near(vmap(lambda t: case.run(t, hard=hard), in_dims=in_dim)(x), expected, factor=10 * case.condition)


@each_case
def test_nested_vmap(case):
    x = random(2, 3, 5)
    assert_near(vmap(vmap(case.run))(x), case.run(x), factor=10 * case.condition)


@softness
@each_case
def test_per_sample_gradients(case, hard):
    x = random(3, 5)
    f = lambda row: case.run(row, hard=hard).square().sum()  # noqa: E731
    expected = torch.stack([eager_gradient(f, row) for row in x])
    assert_near(vmap(grad(f))(x), expected, order=1, factor=case.condition)


@each_case
def test_jacrev(case):
    x = random(5)
    jacobian = jacrev(case.run)(x)
    expected = torch.autograd.functional.jacobian(case.run, x)
    assert_near(jacobian, expected, order=1, factor=case.condition)


@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_grad_of_grad(case):
    x = random(5)
    f = lambda t: case.run(t, steepness=2.0).square().sum()  # noqa: E731
    expected = torch.autograd.functional.hessian(f, x)
    assert_near(jacrev(grad(f))(x), expected, order=2)
    assert_near(vmap(jacrev(grad(f)))(x[None])[0], expected, order=2)


def test_vmap_over_steepness_and_payload():
    x, payload, s = random(3, 5), random(3, 5, 2), torch.rand(3, dtype=torch.float64) + 1
    run = lambda t, v, steep: dl.sort_by(t, v, steepness=steep)  # noqa: E731
    expected = torch.stack([run(*arguments) for arguments in zip(x, payload, s, strict=True)])
    assert_near(vmap(run)(x, payload, s), expected)
    assert_near(vmap(run, in_dims=(0, None, None))(x, payload[0], s[0]), dl.sort_by(x, payload[0], steepness=s[0]))
    assert_near(
        vmap(run, in_dims=(None, 0, None))(x[0], payload, s[0]),
        torch.stack([run(x[0], v, s[0]) for v in payload]),
    )
    by_steepness = vmap(grad(lambda steep, t: dl.sort(t, steepness=steep)[0]), in_dims=(0, None))(s, x[0])
    expected = torch.stack([eager_gradient(lambda steep: dl.sort(x[0], steepness=steep)[0], steep) for steep in s])
    assert_near(by_steepness, expected, order=1)


def test_vmap_over_a_batch_of_one_and_of_none():
    for size in (0, 1):
        x = random(size, 2, 5)
        assert_near(vmap(dl.sort)(x), dl.sort(x))


def test_per_sample_gradients_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), dl.SortingNetwork(6, learnable=True)).double()
    x = random(3, 4)
    parameters = dict(model.named_parameters())
    loss = lambda p, row: functional_call(model, p, row).square().sum()  # noqa: E731
    together = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        alone = torch.autograd.grad(loss(parameters, row), list(parameters.values()))
        for name, expected in zip(parameters, alone, strict=True):
            assert_near(together[name][i], expected, order=1)


@compiled
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, at the first use of forward mode
@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
class TestForwardModeRaises:
    def test_jvp(self, case):
        x = random(5)
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            jvp(case.run, (x,), (torch.ones_like(x),))

    def test_jacfwd_and_hessian(self, case):
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            jacfwd(case.run)(random(5))
        with pytest.raises(RuntimeError, match=r"jvp|forward"):
            hessian(lambda t: case.run(t).sum())(random(5))

    def test_dual_numbers(self, case):
        x = random(5)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(RuntimeError, match=r"jvp|forward"):
                case.run(dual)
