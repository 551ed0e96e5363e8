"""First and second derivatives: against finite differences where soft, against the plain-PyTorch path where hard."""

import pytest
import torch

import difflayers as dl
from difflayers import _ops
from difflayers.errors import UnsupportedOperationError
from tests.cases import CASES, FUNCTIONS, INSERTION, NETWORKS, SWAPS, name_of
from tests.tolerances import assert_near

each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
compiled = pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")


def scores(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@each_case
def test_gradcheck_and_gradgradcheck(case):
    x = scores(2, 4)
    f = lambda t: case.run(t, steepness=2.0)  # noqa: E731
    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("case", [case for case in FUNCTIONS if case.trains_steepness], ids=name_of)
def test_with_a_steepness_tensor(case, swap):
    x = scores(2, 4)
    s = torch.tensor([[1.0], [2.5]], dtype=torch.float64, requires_grad=True)
    f = lambda t, s: case.run(t, steepness=s, swap=swap)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, s))
    assert torch.autograd.gradgradcheck(f, (x, s))


@pytest.mark.parametrize("network", [*NETWORKS, INSERTION], ids=str)
@pytest.mark.parametrize("f", [dl.sort, dl.rank, dl.permutation])
def test_on_every_network(f, network):
    assert torch.autograd.gradcheck(lambda t: f(t, network=network, steepness=2.0), scores(1, 7))


@pytest.mark.parametrize("width", [2, 6])  # samples and columns as lanes
@pytest.mark.parametrize("inverse", [False, True], ids=["direct", "inverse"])
def test_with_a_payload(inverse, width):
    x, payload = scores(2, 3), scores(2, 3, width)
    s = torch.tensor([[1.0], [2.5]], dtype=torch.float64, requires_grad=True)
    f = lambda t, v, s: dl.sort_by(t, v, inverse=inverse, steepness=s)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, payload, s))
    assert torch.autograd.gradgradcheck(f, (x, payload, s))
    shared = scores(3, width)  # broadcast over the batch: its gradient sums over the rows
    assert torch.autograd.gradcheck(lambda t, v: f(t, v, 2.0), (x, shared))
    single = scores(3)  # scores broadcast over a batch of payloads
    assert torch.autograd.gradcheck(lambda t, v: f(t, v, 2.0), (single, payload))


def derivatives(case, x, **settings):
    """The gradient, and the gradient of a random direction of it (error-free payloads have none, and say so)."""
    y = case.run(x, **settings)
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(y.shape, generator=random, dtype=y.dtype)
    (first,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    if not first.requires_grad:
        return first, torch.zeros_like(x)
    direction = torch.randn(first.shape, generator=random, dtype=y.dtype)
    try:
        second = torch.autograd.grad((first * direction).sum(), x, allow_unused=True, materialize_grads=True)[0]
    except UnsupportedOperationError:
        assert settings["hard"]
        assert case.name.split()[0] not in ("sort", "permutation", "quantile", "median", "Sort")
        return (first,)
    return first, second


@compiled
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
@pytest.mark.parametrize("swap", SWAPS)
@each_case
def test_equals_the_plain_pytorch_path(case, swap, hard, monkeypatch):
    """For hard=True this is the surrogate: exact forward, relaxed derivatives by autograd."""
    x = scores(2, 6)
    from_kernel = derivatives(case, x, swap=swap, hard=hard, steepness=2.0)
    monkeypatch.setattr(_ops, "has_kernel", lambda op, device: False)
    plain = derivatives(case, x, swap=swap, hard=hard, steepness=2.0)
    for order, (a, b) in enumerate(zip(from_kernel, plain[: len(from_kernel)], strict=True), start=1):
        assert_near(a, b, order=order, factor=case.condition)
    assert plain[0].abs().max() > 0


@compiled
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_third_derivative_raises(hard):
    x = scores(4)
    (first,) = torch.autograd.grad(dl.sort(x, hard=hard)[0], x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(UnsupportedOperationError, match=r"third derivative.*difflayers.swaps.Custom"):
        torch.autograd.grad(second.square().sum(), x)


@each_case
def test_gradient_accumulates_over_uses(case):
    x = scores(2, 6)
    (once,) = torch.autograd.grad(case.run(x).sum() + case.run(2 * x).sum(), x)
    parts = [torch.autograd.grad(case.run(factor * x).sum(), x)[0] for factor in (1, 2)]
    assert_near(once, sum(parts), order=1, factor=case.condition)


def test_only_the_wanted_gradients_are_computed():
    x, payload = torch.randn(3, 4), torch.randn(3, 4, 2, requires_grad=True)
    dl.sort_by(x, payload).sum().backward()
    assert payload.grad is not None
    assert x.grad is None
    y = dl.sort(torch.randn(3, 4))
    assert not y.requires_grad
    with torch.no_grad():
        assert not dl.sort(scores(3, 4)).requires_grad


def test_saved_for_backward_is_the_input_alone():
    """n floats a sample: the tensors that autograd keeps."""
    x = torch.randn(64, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        dl.sort(x)
    assert {t.data_ptr() for t in kept} == {x.data_ptr()}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_and_retain_graph():
    x = scores(2, 5)
    with torch.autograd.detect_anomaly(check_nan=True):
        y = dl.sort(x).square().sum()
        y.backward(retain_graph=True)
    first = x.grad.clone()
    y.backward()
    assert_near(x.grad, 2 * first, order=1)


def test_input_changed_in_place_is_noticed():
    x = torch.randn(4, requires_grad=True)
    z = x * 1
    y = dl.sort(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
