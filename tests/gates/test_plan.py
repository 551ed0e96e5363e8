"""Plans: saved, loaded, replayed; optimizers that go on."""

import copy
import json
import sys

import pytest
import torch
from torch import nn

from difflayers import gates

from .nets import chain, resnet


class Heads(nn.Module):
    """Attention that remembers its number of heads."""

    def __init__(self):
        super().__init__()
        self.heads = 4
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


def half_closed(model, x=None):
    gated = model if x is None else gates.attach(model, x)
    generator = torch.Generator().manual_seed(0)
    for gate in gated.gates.values():
        gate.weight.data[torch.randperm(gate.n, generator=generator)[: gate.n // 2]] = -1
    return gated


MODELS = {
    "residual": (lambda: resnet(4, 8, classes=3, blocks=1), (2, 1, 8, 8)),
    "heads": (Heads, (2, 5, 16)),
    "chain": (lambda: chain(4, 9, 7, 2), (3, 4)),
}


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "torch"])
@pytest.mark.parametrize("kind", list(MODELS))
def test_saved_and_replayed_on_a_fresh_model(kind, safe, tmp_path, monkeypatch):
    if safe:
        pytest.importorskip("safetensors")
    else:
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    make, shape = MODELS[kind]
    gated = half_closed(make(), torch.randn(shape))
    small = gates.prune(gated).eval()
    written = gates.plan(gated).save(tmp_path / "plan.json")
    assert [path.suffix for path in written] == [".json", ".safetensors" if safe else ".pt"]
    loaded = gates.PrunePlan.load(tmp_path / "plan.json")
    again = loaded.apply(make()).eval()
    x = torch.randn(shape)
    assert torch.equal(again(x), small(x))
    assert repr(again) == repr(small)
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    if kind == "heads":
        assert again.heads == 2
    # the plan alone: what stays of the model's own weights
    own = loaded.apply(gated.model, load_weights=False).eval()
    assert torch.equal(own(x), small(x))
    exported = torch.export.export(small, (x,)).module()
    torch.testing.assert_close(exported(x), small(x))


def test_without_weights(tmp_path):
    gated = half_closed(chain(4, 8, 2), torch.randn(1, 4))
    found = gates.plan(gated, weights=False)
    assert found.weights is None
    assert found.save(tmp_path / "p.json") == [tmp_path / "p.json"]
    assert gates.PrunePlan.load(tmp_path / "p.json") == found
    average = copy.deepcopy(gated.model)
    average[0].weight.data.mul_(2)
    kept = found.groups["0"]
    torch.testing.assert_close(found.apply(average)[0].weight, 2 * gated.model[0].weight[kept])


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "plain": lambda p: torch.optim.SGD(p, lr=0.1),
}


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
@pytest.mark.parametrize("with_gates", [False, True])
def test_the_optimizer_goes_on(kind, with_gates):
    net = resnet(4, 8, classes=3, blocks=1).double()
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    gated = gates.attach(net, x[:1])
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    rest = [{"params": gated.gates.parameters(), "lr": 0.0}] if with_gates else []
    optimizer = OPTIMIZERS[kind]([{"params": net.parameters()}, {"params": [extra], "lr": 0.5}, *rest])

    def step(model, optimizer):
        optimizer.zero_grad()
        (model(x) * extra).square().sum().backward()
        optimizer.step()

    def close():
        for gate in gated.gates.values():
            gate.weight.data[1:3] = -1

    for _ in range(3):
        step(gated, optimizer)
    close()
    before = extra.detach().clone()
    found = gates.plan(gated)
    small = gates.prune(gated)
    carried = found.transfer_optimizer(optimizer, gated, small)
    assert type(carried) is type(optimizer)
    assert [group["lr"] for group in carried.param_groups] == [group["lr"] for group in optimizer.param_groups[:2]]
    step(small, carried)
    after = extra.detach().clone()
    extra.data.copy_(before)
    gated.freeze()
    step(gated, optimizer)
    expected = found.apply(gated.model, load_weights=False)
    for (name, a), b in zip(small.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(after, extra.detach())


def test_states_that_cannot_be_cut_are_refused():
    gated = half_closed(chain(4, 8, 2), torch.randn(1, 4))
    optimizer = torch.optim.LBFGS(gated.model.parameters(), max_iter=2)
    x = torch.randn(3, 4)

    def closure():
        optimizer.zero_grad()
        loss = gated.model(x).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match="start a new optimizer"):
        gates.plan(gated).transfer_optimizer(optimizer, gated, gates.prune(gated))


def test_bad_files_and_models(tmp_path):
    gated = half_closed(chain(4, 8, 2), torch.randn(1, 4))
    path = tmp_path / "p.json"
    gates.plan(gated).save(path)
    with pytest.raises(ValueError, match=r"must have '0\.weight' of shape"):
        gates.PrunePlan.load(path).apply(chain(4, 6, 2))
    with pytest.raises(ValueError, match="none of this name"):
        gates.PrunePlan.load(path).apply(nn.Linear(4, 2))
    with pytest.raises(TypeError, match="'model'"):
        gates.PrunePlan.load(path).apply("model")
    content = json.loads(path.read_text())
    for change in ({"weights": 5}, {"weights": "p.bin"}, {"removed": [["0", "import", 0]]}):
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=r"PrunePlan\.load"):
            gates.PrunePlan.load(path)
    broken = {
        "indices": {"kept": {"0.weight": {"0": [99]}}},
        "integers": {"sizes": [["0", "forward", "code"]]},
        "must have a size 'forward'": {"sizes": [["0", "forward", 3]]},
        "takes out": {"removed": [["no.where", "zero", 0]]},
    }
    for match, change in broken.items():
        path.write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match=match):
            gates.PrunePlan.load(path).apply(chain(4, 8, 2))
    other = gates.PrunePlan.load(path)._replace(removed=(), weights={"0.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="weights must be those of the pruned model"):
        other.apply(chain(4, 8, 2))
    for broken in ("no json", "[]", json.dumps({**content, "version": 9}), json.dumps({**content, "kept": 3})):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"PrunePlan\.load"):
            gates.PrunePlan.load(path)


class Code:
    """What a pickle can do: run anything when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_are_read_and_never_executed(tmp_path, monkeypatch):
    plan = gates.plan(half_closed(chain(4, 8, 2), torch.randn(1, 4)))
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path, weights = plan.save(tmp_path / "p.json")
    assert weights.suffix == ".pt"
    torch.save({"0.weight": Code(tmp_path / "ran")}, weights)
    with pytest.raises(ValueError, match=r"PrunePlan\.load.*must hold the plan's weights"):
        gates.PrunePlan.load(path)
    torch.save([1], weights)
    with pytest.raises(ValueError, match="tensors by name"):
        gates.PrunePlan.load(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weights": "../../elsewhere.pt"}))
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "elsewhere.pt")):
        gates.PrunePlan.load(path)
    path.write_text(json.dumps({**content, "weights": "p.safetensors"}))
    with pytest.raises(ImportError, match=r"difflayers\[gates\]"):
        gates.PrunePlan.load(path)
    monkeypatch.undo()
    pytest.importorskip("safetensors")
    (tmp_path / "p.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="must hold the plan's weights"):
        gates.PrunePlan.load(path)
    assert not (tmp_path / "ran").exists()


class Classifier(nn.Module):
    """Torch's own encoder layer, and a head."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 12, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x))


ONNX = {"resnet": (lambda: resnet(4, 8, classes=3, blocks=1), (2, 1, 8, 8)), "encoder": (Classifier, (2, 5, 8))}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(ONNX))
def test_replayed_and_exported(kind, tmp_path):
    """Heads, channels and a branch removed, kept in files, replayed: as torch.export's program, and as ONNX, run by
    ONNX's own reference."""
    make, shape = ONNX[kind]
    x = torch.randn(shape)
    gated = half_closed(gates.attach(make().eval(), x, branches="gate"))
    branches = [name for name, group in gated.groups.items() if group.branch is not None]
    gated.gates[branches[-1]].weight.data.fill_(-1)
    gates.plan(gated).save(tmp_path / "p.json")
    small = gates.PrunePlan.load(tmp_path / "p.json").apply(make()).eval()
    with torch.no_grad():
        expected = gated.eval()(x)
        torch.testing.assert_close(small(x), expected)
        torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), expected)
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    reference = pytest.importorskip("onnx.reference")
    model = torch.onnx.export(small, (x,), dynamo=True, verbose=False).model_proto
    onnx.checker.check_model(model)
    evaluator = reference.ReferenceEvaluator(model)
    found = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})[0]
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-5)
    # the sizes are those of what is left (constants that ONNX makes of shapes are few)
    stored = sum(torch.Size(each.dims).numel() for each in model.graph.initializer if each.data_type == 1)
    assert stored < sum(p.numel() for p in small.parameters()) + 8
