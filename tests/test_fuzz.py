"""A few cases of every target of `make fuzz`, and a shorter leak check: see tests/reliability."""

import pytest

import difflayers as dl
from tests.reliability import fuzz, leaks
from tests.reliability.operators import CALLS, Maker, operator

TARGETS = {
    name: case for name, case in fuzz.targets().items() if dl.build_info()["compiled"] or name.startswith("function:")
}


@pytest.mark.parametrize("target", TARGETS)
def test_malformed_arguments(target):
    _, findings = fuzz.run(target, TARGETS[target], range(3 if target == "table:too large" else 12))
    assert list(findings) == []


@pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")
@pytest.mark.parametrize("name", ["transport_backward", "refine_models", "subset_sample"])
def test_memory_does_not_grow(name):
    call = CALLS[name](Maker(5, 8))
    wrong = leaks.refused(name, call)
    grown, raised = leaks.growth(lambda: operator(name)(*call), lambda: operator(name)(*wrong), 3000)
    assert raised > 900
    assert grown < 2 * leaks.LIMIT
