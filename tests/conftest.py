"""Settings of every test: fresh memory is NaN, seeds are fixed, tests that need a GPU say so when there is none."""

import pytest
import torch

# also fills the memory of new tensors with NaN, the kernels' outputs included
torch.use_deterministic_algorithms(True)


def pytest_runtest_setup(item):
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
