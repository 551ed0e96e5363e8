"""torch.compile without graph breaks, torch.export, and torch.library's own checks of the operators."""

import pytest
import torch
from torch.library import opcheck

import difflayers as dl
from difflayers import _random
from tests.cases import CASES, FUNCTIONS, NETWORKS, SWAPS, name_of
from tests.reliability import dynamic_shapes
from tests.tolerances import assert_near

pytestmark = [
    pytest.mark.skipif(not dl.build_info()["compiled"], reason="the plain-PyTorch path builds its tables in NumPy"),
    # torch's own, while tracing
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=name_of)
softness = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()


def compiled(f, backend="aot_eager", **options):
    return torch.compile(f, fullgraph=True, backend=backend, **options)


def assert_same_with_gradient(actual_f, expected_f, *shapes, factor=1.0):
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        results = []
        for f in (actual_f, expected_f):
            leaf = x.clone().requires_grad_()
            y = f(leaf)
            results.append((y, torch.autograd.grad(y.square().sum(), leaf)[0]))
        (actual, gradient), (expected, wanted) = results
        assert_near(actual, expected, factor=factor)
        assert_near(gradient, wanted, order=1, factor=factor)


@softness
@each_case
def test_compile(case, hard):
    f = lambda x: case.run(x, hard=hard)  # noqa: E731
    assert_same_with_gradient(compiled(f), f, (3, 6), factor=case.condition)


@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_compile_with_mask_steepness_and_dim(case):
    mask = torch.tensor([True, True, False, True])[:, None]
    settings = [{"mask": mask}, {"steepness": torch.rand(1, 3, dtype=torch.float64) + 1}]
    settings += [{"steepness": dl.RelativeSteepness(3.0), "network": "bitonic", "swap": "gaussian"}]
    for setting in settings:
        f = lambda x, setting=setting: case.run(x, dim=0, **setting)  # noqa: E731
        assert_same_with_gradient(compiled(f), f, (4, 3))


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("function", [dl.sort, dl.permutation, dl.rank, dl.median])
def test_compile_with_changing_shapes(function, dynamic):
    f = compiled(function, dynamic=dynamic)
    assert_same_with_gradient(f, function, (3, 6), (5, 6), (7, 9), (2, 17))


@pytest.mark.parametrize("name", ["dl.sort", "dl.topk", "dl.quantile", "dl.subsets.marginals", "dl.gumbel_softmax"])
def test_two_compilations_for_all_shapes(name, monkeypatch):
    """One for the first shape, one with symbols for sizes; `make dynamic-shapes` does the same for every layer."""
    for drawn in ("bits", "uniform", "normal"):
        monkeypatch.setattr(_random, drawn, getattr(_random, drawn))
    dynamic_shapes.same_noise()
    assert dynamic_shapes.compilations(dynamic_shapes.layers()[name]) == (2, "")


def test_compile_with_changing_numbers():
    """A Python float that changes between calls becomes symbolic: a steepness schedule, a quantile's level."""
    x = torch.randn(3, 6)
    by_steepness = compiled(lambda t, s: dl.sort(t, steepness=s))
    by_k = compiled(lambda t, k: dl.topk(t, k).membership)
    by_q = compiled(lambda t, q: dl.quantile(t, q))
    for i in (1, 2, 3):
        assert_near(by_k(x, i), dl.topk(x, i).membership)
        assert_near(by_steepness(x, 2.5 * i), dl.sort(x, steepness=2.5 * i))
        assert_near(by_q(x, 0.2 * i), dl.quantile(x, 0.2 * i))


def test_compile_with_a_steepness_schedule():
    module, x = dl.SortingNetwork(6), torch.randn(3, 6)
    run = compiled(module)
    for steepness in (1.0, 2.0, 3.5):
        module.steepness = steepness
        assert_near(run(x), dl.sort(x, steepness=steepness))


def test_compile_in_half_precision():
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    assert_near(compiled(dl.sort)(x), dl.sort(x))


def test_compile_of_vmap():
    x = torch.randn(3, 2, 6)
    assert_near(compiled(torch.func.vmap(dl.sort))(x), dl.sort(x))


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: torch.func.vmap(torch.func.grad(f))])
def test_compile_of_grad_is_never_wrong(transform):
    """autograd.Function alone gives a wrong number here in torch 2.13; raising is allowed, lying is not."""
    x = torch.randn(3, 6, dtype=torch.float64)
    f = transform(lambda t: dl.sort(t, steepness=2.0).pow(3).sum())
    expected = f(x)
    try:
        actual = compiled(f)(x)
    except (RuntimeError, torch._dynamo.exc.TorchDynamoException):
        return
    assert_near(actual, expected, order=1)


@pytest.mark.slow
@pytest.mark.parametrize("returns", ["values", "permutation"])
def test_compile_with_inductor(returns):
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), dl.SortingNetwork(8, returns=returns, learnable=True)).double()
    assert_same_with_gradient(compiled(model, backend="inductor"), model, (3, 5))


@pytest.mark.parametrize("returns", ["values", "permutation", "ranks", "both"])
def test_export(returns):
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), dl.SortingNetwork(8, returns=returns))
    x = torch.randn(4, 5)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
    for rows in (4, 7):
        x = torch.randn(rows, 5)
        actual, expected = exported(x), model(x)
        for a, b in zip(actual, expected, strict=True) if returns == "both" else [(actual, expected)]:
            assert_near(a, b)


def test_exported_program_can_be_saved(tmp_path):
    model, x = dl.SortingNetwork(6, hard=True), torch.randn(2, 6)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(x), x.sort(-1).values)


@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_fake_and_meta_tensors_have_the_right_shape(case):
    x = torch.randn(3, 6)
    y = case.run(x)
    on_meta = case.run(x.to("meta"))
    assert (on_meta.shape, on_meta.dtype, on_meta.device.type) == (y.shape, y.dtype, "meta")


SAMPLES = [  # rows, n, first, last, payload width, per row
    (3, 5, 0, 5, 2, True),
    (4, 6, 1, 4, 6, False),
    (1, 1, 0, 1, 1, True),
    (2, 4, 2, 2, 3, False),
    (0, 4, 0, 4, 2, True),
]
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=str)
each_what = pytest.mark.parametrize("what", ["values", "matrix", "carry", "carry_transposed"])


def arguments_of(sample, what, *, dtype=torch.float64, swap="cauchy", hard=False):
    rows, n, first, last, width, per_row = sample
    length = {"carry": n, "carry_transposed": last - first}.get(what)
    leaf = lambda *shape: torch.randn(shape, dtype=dtype).requires_grad_()  # noqa: E731
    payload = None if length is None else leaf(rows, length, width)
    steepness = (torch.rand(rows, dtype=dtype) + 1).requires_grad_() if per_row else None
    return (leaf(rows, n), steepness, payload, what, "odd_even_merge", first, last, swap, 0.0, 3.0, hard)


@softness
@each_what
@each_sample
class TestOpcheck:
    def test_transport(self, sample, what, hard):
        opcheck(torch.ops.difflayers.transport, arguments_of(sample, what, hard=hard))

    def test_transport_backward(self, sample, what, hard):
        call = arguments_of(sample, what, hard=hard)
        gradient = torch.randn_like(torch.ops.difflayers.transport(*call)).requires_grad_()
        arguments = (gradient, *call, call[1] is not None, call[2] is not None)
        checks = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
        if hard and what.startswith("carry"):
            checks.pop()  # it would differentiate once more, which raises
        opcheck(torch.ops.difflayers.transport_backward, arguments, test_utils=checks)

    def test_transport_double_backward(self, sample, what, hard):
        call = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments_of(sample, what, hard=hard))
        gradient = torch.randn_like(torch.ops.difflayers.transport(*call))
        directions = [None if a is None else torch.randn_like(a) for a in call[:3]]
        opcheck(torch.ops.difflayers.transport_double_backward, (*directions, gradient, *call))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("swap", SWAPS)
def test_opcheck_of_settings(swap, network):
    call = list(arguments_of((3, 5, 0, 5, 2, True), "values", dtype=torch.float32, swap=swap))
    call[4], call[8] = network, 0.25
    opcheck(torch.ops.difflayers.transport, tuple(call))
