"""What `make sanitize` runs covers every operator: a new one must be added to the table, and so to fuzzing."""

import re

import pytest
import torch

import difflayers as dl
from tests.reliability.operators import CALLS, ROOT, Maker, operator, registered, same

pytestmark = pytest.mark.skipif(not dl.build_info()["compiled"], reason="the kernels are not compiled in")


def test_every_operator_is_in_the_table():
    assert registered() == set(CALLS)


def test_every_source_of_operators_has_a_sanitized_test():
    """Each operator is called, by name or through a layer, in one of the files that sanitize.sh names."""
    script = (ROOT / "tests" / "sanitize.sh").read_text()
    files = [ROOT / name for name in re.findall(r"tests/\w+/test_\w+\.py", script)]
    assert all(file.exists() for file in files)
    assert ROOT / "tests/reliability/test_sanitized.py" in files  # which calls all of them


@pytest.mark.parametrize("name", CALLS)
def test_operator_repeats_itself(name):
    """Bit for bit, whatever its fresh memory held, which conftest fills with NaN."""
    for seed in range(20):
        arguments = CALLS[name](Maker(seed))
        assert same(operator(name)(*arguments), operator(name)(*arguments))


@pytest.mark.parametrize("name", CALLS)
def test_larger_operands(name):
    """Beyond one tile, one block and one vector in every direction."""
    sizes = (100,) if name.startswith("minimal") else (33, 70)
    for size in sizes:
        arguments = CALLS[name](Maker(size, size))
        result = operator(name)(*arguments)
        assert same(result, operator(name)(*arguments))
        assert not isinstance(result, torch.Tensor) or result.numel()
