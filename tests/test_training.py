"""What training code does to a layer: autocast, checkpointing, copies, state dicts, several processes."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import difflayers as dl
from tests.cases import FUNCTIONS, name_of
from tests.tolerances import assert_identical, assert_near

N = 6


def model(**settings):
    return nn.Sequential(nn.Linear(4, N), dl.SortingNetwork(N, returns="values", **settings), nn.Linear(N, 1))


def gradients(module, x):
    module.zero_grad()
    module(x).square().mean().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_sequential_trains_towards_its_target():
    torch.manual_seed(0)
    network = model(learnable=True)
    x = torch.randn(256, 4)
    target = x.sum(1, keepdim=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimiser.zero_grad()
        loss = (network(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_autocast(hard):
    """Under autocast the layer sees bfloat16, computes in float32 and returns bfloat16."""
    network, x = model(hard=hard), torch.randn(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = network[0](x)
        y = network[1](scores)
        out = network(x)
    assert scores.dtype == y.dtype == out.dtype == torch.bfloat16
    assert_identical(y, dl.sort(scores.float(), hard=hard).to(torch.bfloat16))
    out.float().sum().backward()
    for p in network.parameters():
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()


@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_autocast_leaves_float32_scores_alone(case):
    x = torch.randn(3, N)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(case.run(x), case.run(x, steepness=10.0))
    assert case.run(x).dtype == torch.float32


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_checkpoint(case, reentrant):
    x = torch.randn(3, N, requires_grad=True)
    expected = torch.autograd.grad(case.run(x).square().sum(), x)[0]
    checkpoint(case.run, x, use_reentrant=reentrant).square().sum().backward()
    assert_identical(x.grad, expected)


SETTINGS = [
    {},
    {"hard": True, "swap": "optimal"},
    {"learnable": True, "steepness": 3.0},
    {"swap": dl.swaps.LogisticART(0.4), "network": dl.Network([(i, i + 1) for e in range(5, 0, -1) for i in range(e)])},
    {"steepness": dl.RelativeSteepness(4.0)},
    {"swap": dl.swaps.Custom(torch.sigmoid)},
]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_copies_of_a_model(settings, clone):
    original, x = model(**settings), torch.randn(5, 4)
    twin = clone(original)
    assert_identical(twin(x), original(x))
    before = original(x)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert not torch.equal(twin(x), before)
    assert_identical(original(x), before)  # nothing is shared


@pytest.mark.parametrize("settings", SETTINGS, ids=name_of)
def test_state_dict_round_trip(settings, tmp_path):
    source, target, x = model(**settings), model(**settings), torch.randn(5, 4)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.rand_like(p))
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_identical(target(x), source(x))
    assert ("1.log_steepness" in source.state_dict()) == settings.get("learnable", False)


def test_layers_without_tensors_have_an_empty_state():
    for layer in (dl.SortingNetwork(3), dl.Sort(), dl.Rank(), dl.TopK(2), dl.losses.SpearmanLoss()):
        assert not layer.state_dict()
        assert not list(layer.parameters())


WORKER = """
import sys, torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[4])
from tests.test_training import gradients, model

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)  # DDP must make the replicas equal
network = model(learnable=True)
if rank == 0:
    network.load_state_dict(torch.load(out + "/initial.pt", weights_only=True))
replica = torch.nn.parallel.DistributedDataParallel(network)
x = torch.load(out + "/data.pt", weights_only=True)
result = gradients(replica, x[rank::2])
torch.save({name.removeprefix("module."): g for name, g in result.items()}, f"{out}/gradients{rank}.pt")
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one(tmp_path):
    network, x = model(learnable=True), torch.randn(16, 4)
    torch.save(network.state_dict(), tmp_path / "initial.pt")
    torch.save(x, tmp_path / "data.pt")
    expected = gradients(network, x)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store"), str(tmp_path), root],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    for rank in range(2):
        actual = torch.load(tmp_path / f"gradients{rank}.pt", weights_only=True)
        assert actual.keys() == expected.keys()
        for name, gradient in actual.items():
            assert_near(gradient, expected[name], order=1)
