"""The CPU kernels and the Triton kernels against the plain path in float64, on the same noise."""

import os
import subprocess
import sys

import pytest
import torch
from torch.library import opcheck

import difflayers as dl
from difflayers import _ops, _random
from difflayers.estimators import fused, reference
from tests.tolerances import assert_identical, assert_near

# in the Triton interpreter NumPy warns of the rows that pad a tile
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")
compiled = pytest.mark.skipif(not _ops.COMPILED, reason="the kernels are not compiled in")
KINDS = ("straight_through", "reinmax")
TEMPERATURES = {"one": 1.0, "soft": 3.0, "cold": 0.2, "by row": None}
# 16 is the widest pack; 4096 the width of a Triton block
SIZES = (1, 2, 3, 10, 15, 16, 17, 33, 257, 5000)


def implementations():
    if _ops.COMPILED:
        yield pytest.param(lambda: _ops.choice_kernels(), id="cpu")
    yield pytest.param(triton_operators, id="triton")


def triton_operators():
    pytest.importorskip("triton")
    from difflayers.estimators import triton_kernels

    if torch.cuda.is_available():
        pytest.skip("interpreted only where there is no GPU; see test_cuda.py")
    return triton_kernels.OPERATORS


each_implementation = pytest.mark.parametrize("load", list(implementations()))
each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def problem(n, temperature):
    rows = 37 if n < 100 else 3
    logits = 3 * torch.randn(rows, n)
    if n > 2:
        logits[:, 1] = -torch.inf
        logits[0, 0] = 90.0  # the rest of this row underflows
    noise = _random.bits((rows, n), logits.device, None)
    value = TEMPERATURES[temperature]
    tensor = torch.rand(rows, 1) + 0.5 if value is None else None
    return logits, noise, torch.randn(rows, n), tensor, 1.0 if value is None else value


def wide(tensor, constant):
    return constant if tensor is None else tensor.double()


@each_temperature
@pytest.mark.parametrize("n", SIZES)
@each_implementation
def test_gumbel_softmax(load, n, temperature):
    run = load()
    logits, noise, gradient, tensor, constant = problem(n, temperature)
    x = logits.double().requires_grad_()
    expected = reference.gumbel_softmax(x, wide(tensor, constant), noise, False)
    soft, sample = run.gumbel_softmax(logits, noise, tensor, constant, True)
    # keys of up to 22 are rounded to 2e-6 and divided by the temperature
    assert_near(soft, expected.float(), factor=5)
    assert_identical(sample, reference.gumbel_softmax(logits, wide(tensor, constant), noise, True).float())
    only, empty = run.gumbel_softmax(logits, noise, tensor, constant, False)
    assert_identical(only, soft)
    assert empty.numel() == 0
    (wanted,) = torch.autograd.grad(expected, x, gradient.double())
    actual = run.gumbel_softmax_backward(gradient, expected.detach().float(), tensor, constant)
    assert_near(actual, wanted.float(), order=1)


@each_temperature
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
@each_implementation
def test_choice(load, n, kind, temperature):
    run = load()
    logits, _, gradient, tensor, constant = problem(n, temperature)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64)
    x = logits.double().requires_grad_()
    index = reference.sample(x, uniform)
    expected = getattr(reference, kind)(x, wide(tensor, constant), index)
    sample, marked = run.choose(logits, uniform)
    assert_identical(sample.double(), expected.detach())
    assert_identical((~marked.signbit()).double(), expected.detach())
    assert_identical(marked.abs(), logits.amax(1, keepdim=True) - logits)
    (wanted,) = torch.autograd.grad(expected, x, gradient.double())
    assert_near(run.choose_backward(gradient, marked, tensor, constant, kind), wanted.float(), order=1)


@each_implementation
def test_every_outcome_is_reached_and_none_of_probability_zero(load):
    logits = torch.tensor([[-torch.inf, 0.0, -200.0, 1.0, -torch.inf, 2.0, -torch.inf]])
    edges = [0.0, 5e-324, 0.0900305, 0.0900306, 0.3347, 0.3348, 1 - 2**-53]
    uniform = torch.tensor(edges, dtype=torch.float64)[:, None]
    sample, _ = load().choose(logits.expand(len(edges), -1).contiguous(), uniform)
    assert sample.argmax(1).tolist() == [1, 1, 1, 3, 3, 5, 5]
    assert (sample.sum(1) == 1).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_bad_rows_are_nan_in_triton(bad):
    run = triton_operators()
    logits = torch.randn(4, 6)
    logits[1] = torch.full((6,), bad) if bad == -torch.inf else logits[1].index_fill(0, torch.tensor(2), bad)
    noise = _random.bits((4, 6), logits.device, None)
    results = (*run.gumbel_softmax(logits, noise, None, 1.0, True), run.choose(logits, torch.rand(4, 1).double())[0])
    for result in results:
        assert result[1].isnan().all()
        assert not result[[0, 2, 3]].isnan().any()


@compiled
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("per_row", [False, True])
def test_opcheck(per_row, hard):
    _ops.choice_kernels()
    logits, noise, gradient, *_ = problem(7, "one")
    temperature = torch.rand(len(logits), 1) + 0.5 if per_row else None
    ops = torch.ops.difflayers
    checks = ["test_schema", "test_faketensor"]  # autograd is wired in fused.py, outside the operators
    opcheck(ops.gumbel_softmax, (logits, noise, temperature, 0.7, hard), test_utils=checks)
    opcheck(ops.gumbel_softmax_backward, (gradient, logits.softmax(1), temperature, 0.7), test_utils=checks)
    uniform = torch.rand(len(logits), 1, dtype=torch.float64)
    opcheck(ops.choose, (logits, uniform), test_utils=checks)
    marked = ops.choose(logits, uniform)[1]
    for kind in KINDS:
        opcheck(ops.choose_backward, (gradient, marked, temperature, 0.7, kind), test_utils=checks)


@compiled
def test_operators_refuse_what_does_not_fit():
    ops = _ops.choice_kernels()
    logits, uniform = torch.randn(3, 4), torch.rand(3, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        ops.choose(logits.double(), uniform)
    with pytest.raises(RuntimeError, match="uniform"):
        ops.choose(logits, uniform[:2])
    with pytest.raises(RuntimeError, match="two-dimensional"):
        ops.choose(logits[0], uniform)
    with pytest.raises(RuntimeError, match="shape"):
        ops.choose_backward(logits[:, :2], logits, None, 1.0, "reinmax")
    with pytest.raises(RuntimeError, match="unknown estimator"):
        ops.choose_backward(logits, logits, None, 1.0, "other")
    with pytest.raises(RuntimeError, match="temperature"):
        ops.gumbel_softmax_backward(logits, logits, torch.ones(2, 1), 1.0)


CALLS = {
    "gumbel_softmax": dl.gumbel_softmax,
    "gumbel_softmax hard": lambda x, t, **s: dl.gumbel_softmax(x, t, hard=True, **s),
    "straight_through": dl.straight_through,
    "reinmax": dl.reinmax,
}
each_call = pytest.mark.parametrize("name", CALLS)


def derivatives(name, temperature):
    x = torch.linspace(-2, 2, 30).reshape(5, 6).requires_grad_()
    weight = torch.linspace(-1, 1, 30).reshape(5, 6).square().requires_grad_()
    y = CALLS[name](x, temperature, generator=torch.Generator().manual_seed(3))
    first = torch.autograd.grad((y * weight).square().sum(), x, create_graph=True)[0]
    second = torch.autograd.grad((first * torch.arange(6.0)).sum(), (x, weight), create_graph=True)
    third = torch.autograd.grad(second[0].square().sum(), (x, weight))
    return y, first, *second, *third


@compiled
@pytest.mark.parametrize("temperature", [1.0, 0.6, torch.linspace(0.5, 1.5, 5)[:, None]], ids=["1", "0.6", "rows"])
@each_call
def test_three_derivatives_equal_those_of_the_plain_path(name, temperature, monkeypatch):
    from_kernel = derivatives(name, temperature)
    monkeypatch.setattr(fused, "kernels", lambda logits, temperature: None)
    for order, (a, b) in enumerate(zip(from_kernel, derivatives(name, temperature), strict=True)):
        assert_near(a, b, order=min(2, order), factor=3)


@compiled
@each_call
def test_one_tensor_is_kept_for_backward(name):
    x = torch.randn(64, 10, requires_grad=True)
    kept = {}
    pack = lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t)  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        CALLS[name](x, 1.0)
    assert sum(t.untyped_storage().nbytes() for t in kept.values()) == x.numel() * 4


@compiled
@each_call
def test_result_may_be_changed_in_place(name):
    x = torch.randn(3, 4, requires_grad=True)
    y = CALLS[name](x, 1.0) * 1
    y.add_(1)
    y.sum().backward()
    assert x.grad.isfinite().all()


CUBIN = """
import warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from difflayers.estimators import triton_kernels as kernels

types = dict.fromkeys(("logits", "soft", "sample", "gradient", "result", "marked", "temperatures"), "*fp32")
types |= {"bits": "*i32", "uniform": "*fp64", "constant": "fp32", "rows": "i32", "n": "i32"}
for kernel in (kernels._gumbel_softmax, kernels._gumbel_softmax_backward, kernels._choose, kernels._choose_backward):
    for tile, block in ((256, 16), (1, 4096)):
        fixed = {"PER_ROW": True, "TILE": tile, "BLOCK": block, "HARD": True, "REINMAX": True}
        signature = {name: "constexpr" if name in fixed else types[name] for name in kernel.arg_names}
        constants = {(i,): fixed[name] for i, name in enumerate(kernel.arg_names) if name in fixed}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        print(len(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]) > 0)
"""


def test_triton_kernels_compile_for_cuda(tmp_path):
    """Down to machine code for sm_90, which needs no GPU."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CUBIN], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True"] * 8
