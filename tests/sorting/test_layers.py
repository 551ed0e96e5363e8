"""Modules: a function with its settings remembered, and nothing else."""

import copy
import pickle

import pytest
import torch
from torch import nn

import difflayers as dl
from difflayers.sorting import layers

N = 5
FUNCTIONS = {"values": dl.sort, "permutation": dl.permutation, "ranks": dl.rank}
SETTINGS = [
    {},
    {"network": "odd_even"},
    {"network": "bitonic"},
    {"network": dl.Network([(i, i + 1) for layer in range(N) for i in range(layer % 2, N - 1, 2)])},
    {"swap": "logistic"},
    {"swap": dl.swaps.LogisticART(0.5)},
    {"steepness": 2.0},
    {"steepness": dl.RelativeSteepness(3.0)},
    {"steepness": torch.tensor([[1.0], [20.0], [3.0]])},
    {"hard": True},
    {"mask": torch.tensor([True, False, True, True, False])},
]


@pytest.fixture
def x():
    return torch.randn(3, N, generator=torch.Generator().manual_seed(0))


def named(setting):
    return next(iter(setting), "defaults")


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("returns", FUNCTIONS)
@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_network_is_the_function_with_its_settings(x, setting, returns, descending):
    module = dl.SortingNetwork(N, returns=returns, descending=descending, **setting)
    expected = FUNCTIONS[returns](x, descending=descending, **setting)
    assert_same(module(x), expected)
    if setting:  # the setting must have arrived: it changes the result
        assert not torch.equal(expected, FUNCTIONS[returns](x, descending=descending)) or "network" in setting


@pytest.mark.parametrize("setting", SETTINGS, ids=named)
def test_modules_of_functions(x, setting):
    assert_same(dl.Sort(descending=True, **setting)(x), dl.sort(x, descending=True, **setting))
    assert_same(dl.Rank(descending=True, **setting)(x), dl.rank(x, descending=True, **setting))
    for largest in (True, False):
        actual, expected = dl.TopK(2, largest=largest, **setting)(x), dl.topk(x, 2, largest=largest, **setting)
        assert isinstance(actual, dl.TopKResult)
        assert_same(actual.values, expected.values)
        assert_same(actual.membership, expected.membership)


@pytest.mark.parametrize("descending", [False, True])
def test_both(x, descending):
    result = dl.SortingNetwork(N, returns="both", descending=descending)(x)
    assert isinstance(result, dl.Sorted)
    assert_same(result.values, dl.sort(x, descending=descending))
    assert_same(result.permutation, dl.permutation(x, descending=descending))


def test_matrix_is_computed_only_where_returned(x, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the matrix was computed")

    monkeypatch.setattr(layers, "permutation", refuse)
    for returns in ("values", "ranks"):
        dl.SortingNetwork(N, returns=returns)(x)
    with pytest.raises(AssertionError):
        dl.SortingNetwork(N, returns="both")(x)


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_dim(dim):
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1))
    n = x.shape[dim]
    assert_same(dl.SortingNetwork(n, dim=dim)(x), dl.sort(x, dim=dim))
    assert_same(dl.SortingNetwork(n, dim=dim, returns="permutation")(x), dl.permutation(x, dim=dim))
    with pytest.raises(ValueError, match=rf"difflayers.SortingNetwork: argument 'x' must have n = {n + 1} "):
        dl.SortingNetwork(n + 1, dim=dim)(x)


@pytest.mark.parametrize("n", [0, 1])
def test_no_and_one_element(n):
    x = torch.ones(2, n)
    result = dl.SortingNetwork(n, returns="both")(x)
    assert_same(result.values, x)
    assert_same(result.permutation, torch.eye(n).expand(2, n, n))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_with_a_learnable_steepness(x, dtype):
    module = dl.SortingNetwork(N, learnable=True)
    y = module(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, dl.sort(x.to(dtype)))


def test_call_mask_replaces_the_constructor_mask(x):
    first, second = torch.rand(2, N, generator=torch.Generator().manual_seed(2)) < 0.6
    assert not torch.equal(first, second)
    module = dl.SortingNetwork(N, mask=first)
    assert_same(module(x), dl.sort(x, mask=first))
    assert_same(module(x, second), dl.sort(x, mask=second))
    assert_same(dl.Rank()(x, mask=second), dl.rank(x, mask=second))
    assert_same(dl.TopK(2, mask=first)(x, second).membership, dl.topk(x, 2, mask=second).membership)


@pytest.mark.parametrize("garbage", [float("nan"), 1e30, -float("inf")])
def test_absent_places_hold_anything(x, garbage):
    mask = torch.tensor([True, False, True, True, False])
    module = dl.SortingNetwork(N, mask=mask, returns="both")
    spoiled = torch.where(mask, x, garbage).requires_grad_()
    result = module(spoiled)
    assert_same(result.values, module(x).values)
    assert_same(result.permutation, module(x).permutation)
    (result.values.square().sum() + result.permutation.square().sum()).backward()
    assert spoiled.grad.isfinite().all()
    assert not spoiled.grad[:, ~mask].any()


def test_buffers_move_and_the_mask_is_not_saved():
    mask, steepness = torch.ones(N, dtype=torch.bool), torch.tensor([[3.0]])
    module = dl.SortingNetwork(N, mask=mask, steepness=steepness)
    assert list(module.state_dict()) == ["fixed_steepness"]
    assert not list(module.parameters())
    moved = module.to("meta")
    assert moved.mask.device.type == moved.steepness.device.type == "meta"


def test_learnable_steepness_is_a_positive_parameter(x):
    module = dl.SortingNetwork(N, learnable=True, steepness=4.0)
    assert [name for name, _ in module.named_parameters()] == ["log_steepness"]
    torch.testing.assert_close(module.steepness, torch.tensor(4.0))
    target = torch.randn(3, N, generator=torch.Generator().manual_seed(3))
    (module(x) * target).sum().backward()
    s = torch.tensor(4.0, requires_grad=True)
    (dl.sort(x, steepness=s) * target).sum().backward()
    torch.testing.assert_close(module.log_steepness.grad, 4.0 * s.grad)  # chain rule of s = exp(log s)
    assert module.log_steepness.grad != 0


@pytest.mark.parametrize("logarithm", [-1e4, 1e4])
def test_diverged_steepness_stays_positive_and_finite(x, logarithm):
    module = dl.SortingNetwork(N, learnable=True)
    module.log_steepness.data.fill_(logarithm)
    assert module.steepness > 0
    assert module.steepness.isfinite()
    assert module(x).isfinite().all()


def test_learnable_half_precision_module(x):
    module = dl.SortingNetwork(N, learnable=True, steepness=1e6).half()  # 1e6 is beyond float16, its logarithm is not
    y = module(x.half())
    torch.testing.assert_close(y, x.half().sort().values)


def test_tensor_steepness_is_kept_per_row(x):
    steepness = torch.tensor([[1.0], [10.0], [100.0]])
    assert_same(dl.SortingNetwork(N, steepness=steepness)(x), dl.sort(x, steepness=steepness))
    learnable = dl.SortingNetwork(N, steepness=steepness, learnable=True)
    assert learnable.log_steepness.shape == (3, 1)
    torch.testing.assert_close(learnable(x), dl.sort(x, steepness=steepness))


def test_steepness_can_follow_a_schedule(x):
    module = dl.Sort()
    module.steepness = 50.0
    assert_same(module(x), dl.sort(x, steepness=50.0))
    module.steepness = torch.tensor([[2.0]])
    assert_same(module(x), dl.sort(x, steepness=2.0))
    module.steepness = 3.0
    assert_same(module(x), dl.sort(x, steepness=3.0))
    with pytest.raises(ValueError, match="steepness"):
        module.steepness = 0.0
    with pytest.raises(ValueError, match="learnable"):
        dl.SortingNetwork(N, learnable=True).steepness = 3.0


MODULES = [
    dl.SortingNetwork(N, returns="ranks", learnable=True, steepness=3.0, swap=dl.swaps.LogisticART(0.3)),
    dl.SortingNetwork(N, steepness=torch.tensor([2.0]), mask=torch.arange(N) < 3),
    dl.Sort(network=SETTINGS[3]["network"]),
    dl.Rank(steepness=dl.RelativeSteepness(2.0)),
    dl.TopK(2, largest=False, hard=True),
]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_copies_compute_the_same(x, module, clone):
    twin = clone(module)
    expected, actual = module(x), twin(x)
    for a, b in zip(actual, expected, strict=True):
        assert_same(a, b)
    assert repr(twin) == repr(module)
    for a, b in zip(twin.parameters(), module.parameters(), strict=True):
        assert a is not b


def test_state_dict_carries_the_learned_steepness(x):
    source, target = (dl.SortingNetwork(N, learnable=True, steepness=s) for s in (3.0, 30.0))
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert_same(source(x), target(x))


def test_sequential_trains(x):
    model = nn.Sequential(nn.Linear(N, N), dl.SortingNetwork(N, learnable=True), nn.Linear(N, 1))
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model[1].log_steepness.grad != 0


def test_functional_call_and_vmap(x):
    module = dl.SortingNetwork(N, learnable=True)
    logarithms = torch.tensor([0.0, 1.0, 2.0])
    run = lambda logarithm: torch.func.functional_call(module, {"log_steepness": logarithm}, (x,))  # noqa: E731
    expected = torch.stack([dl.sort(x, steepness=s) for s in logarithms.exp()])
    torch.testing.assert_close(torch.func.vmap(run)(logarithms), expected)


@pytest.mark.skipif(not dl.build_info()["compiled"], reason="the plain-PyTorch path builds its tables in numpy")
def test_compiles_without_graph_breaks(x):
    module = dl.SortingNetwork(N, learnable=True, returns="both")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x), module(x), strict=True):
        torch.testing.assert_close(a, b)


def test_repr_says_what_was_set():
    shown = repr(dl.SortingNetwork(7, returns="both", learnable=True, steepness=3.0, swap="optimal", dim=1))
    for part in ("7", "'both'", "steepness=3 (learnable)", "'optimal'", "'odd_even_merge'", "dim=1"):
        assert part in shown
    assert "mask of shape (7,)" in repr(dl.Sort(mask=torch.ones(7, dtype=torch.bool)))
    assert "3, largest=False" in repr(dl.TopK(3, largest=False))
    assert "tensor of shape (2, 1)" in repr(dl.Rank(steepness=torch.ones(2, 1)))


BAD = [
    (TypeError, "n", lambda: dl.SortingNetwork(2.0)),
    (ValueError, "n", lambda: dl.SortingNetwork(-1)),
    (ValueError, "returns", lambda: dl.SortingNetwork(N, returns="rank")),
    (TypeError, "returns", lambda: dl.SortingNetwork(N, returns=None)),
    (TypeError, "learnable", lambda: dl.SortingNetwork(N, learnable=1)),
    (TypeError, "descending", lambda: dl.SortingNetwork(N, descending="no")),
    (ValueError, "network", lambda: dl.SortingNetwork(N, network="quick")),
    (ValueError, "network", lambda: dl.SortingNetwork(N, network=dl.Network([(0, 1)]))),
    (ValueError, "network", lambda: dl.Sort(network="quick")),
    (TypeError, "network", lambda: dl.Sort(network=[(0, 1)])),
    (ValueError, "swap", lambda: dl.Rank(swap="step")),
    (TypeError, "swap", lambda: dl.Rank(swap=torch.sigmoid)),
    (ValueError, "steepness", lambda: dl.Sort(steepness=0.0)),
    (ValueError, "steepness", lambda: dl.Sort(steepness=float("inf"))),
    (TypeError, "steepness", lambda: dl.Sort(steepness="10")),
    (ValueError, "steepness", lambda: dl.Sort(steepness=torch.tensor([1.0, -1.0]))),
    (TypeError, "steepness", lambda: dl.Sort(steepness=torch.tensor([1]))),
    (ValueError, "steepness", lambda: dl.Sort(steepness=torch.ones(1, requires_grad=True))),
    (ValueError, "steepness", lambda: dl.SortingNetwork(N, learnable=True, steepness=dl.RelativeSteepness())),
    (TypeError, "hard", lambda: dl.TopK(1, hard=1)),
    (TypeError, "mask", lambda: dl.TopK(1, mask=torch.ones(N))),
    (TypeError, "dim", lambda: dl.TopK(1, dim=0.0)),
    (TypeError, "k", lambda: dl.TopK(1.0)),
    (ValueError, "k", lambda: dl.TopK(-1)),
    (TypeError, "largest", lambda: dl.TopK(1, largest=0)),
    (TypeError, "x", lambda: dl.SortingNetwork(N)([1.0] * N)),
    (TypeError, "x", lambda: dl.SortingNetwork(N)(torch.arange(N))),
    (ValueError, "x", lambda: dl.SortingNetwork(N)(torch.tensor(1.0))),
    (ValueError, "dim", lambda: dl.SortingNetwork(N, dim=1)(torch.ones(N))),
    (ValueError, "k", lambda: dl.TopK(N + 1)(torch.ones(N))),
]


@pytest.mark.parametrize(("error", "argument", "call"), BAD)
def test_bad_arguments_are_named(error, argument, call):
    with pytest.raises(error, match=rf"^difflayers\.\w+: argument '{argument}' must"):
        call()
