"""Residual branches: found, closed, taken out, and what they cost."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from difflayers import gates

from .zoo_images import Applied, conv_bn


class Summed(Applied):
    """Modules and a function; `f` stands in it for branches that are there or not."""

    def __init__(self, forward, **modules):
        super().__init__(forward, **modules)
        self.off = frozenset()

    def f(self, name, shortcut, branch):
        """shortcut + branch(), the branch on or off."""
        return shortcut if name in self.off else shortcut + branch()


class Attention(nn.Module):
    """Heads; returns a tuple."""

    def __init__(self):
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)), None


def mlp(i, hidden, o):
    return nn.Sequential(nn.LayerNorm(i), nn.Linear(i, hidden), nn.GELU(), nn.Linear(hidden, o))


MODELS = {}


def model(branches, *shape):
    """A model's branches, by the groups' names, and the shape of its input."""

    def register(make):
        MODELS[make.__name__] = (make, branches, shape)
        return make

    return register


@model({"branch_mlp": "mlp"}, 3, 4)
def one_module():
    def forward(m, x):
        x = m.stem(x)
        return m.out(m.f("mlp", x, lambda: m.mlp(x)))

    return Summed(forward, stem=nn.Linear(4, 8), mlp=mlp(8, 6, 8), out=nn.Linear(8, 2))


@model({"branch_two": "two", "branch_four": "four"}, 2, 1, 8, 8)
def post_activation():
    # the second stage has a projection: the side with more work is the branch
    def forward(m, x):
        x = m.stem(x).relu()
        x = m.f("two", x, lambda: m.two(m.one(x).relu())).relu()
        return m.out(m.f("four", m.skip(x), lambda: m.four(m.three(x).relu())).relu().mean((2, 3)))

    return Summed(
        forward, stem=conv_bn(1, 4), one=conv_bn(4, 6), two=conv_bn(6, 4), three=conv_bn(4, 8, stride=2),
        four=conv_bn(8, 8), skip=conv_bn(4, 8, 1, stride=2), out=nn.Linear(8, 2),
    )  # fmt: skip


@model({"branch_b": "b"}, 2, 1, 9, 9)
def in_place():
    # what is added to must have its shape: zeros of it
    def forward(m, x):
        x = m.stem(x)
        if "b" in m.off:
            return m.out(m.skip(x).relu().mean((2, 3)))
        y = m.b(m.second(F.relu(m.a(m.first(x)))))
        y += m.skip(x)
        return m.out(F.relu(y).mean((2, 3)))

    return Summed(
        forward, stem=nn.Conv2d(1, 4, 3), first=nn.Conv2d(4, 6, 3, 2, 1), a=nn.BatchNorm2d(6),
        second=nn.Conv2d(6, 5, 3, padding="same"), b=nn.BatchNorm2d(5), skip=nn.Conv2d(4, 5, 1, 2),
        out=nn.Linear(5, 2),
    )  # fmt: skip


@model({"branch_attention": "attention", "branch_mlp": "mlp"}, 2, 5, 4)
def transformer():
    def forward(m, x):
        x = m.stem(x)
        x = m.f("attention", x, lambda: m.attention(m.norm(x))[0])
        return m.out(m.f("mlp", x, lambda: m.mlp(x)).mean(1))

    return Summed(
        forward, stem=nn.Linear(4, 16), norm=nn.LayerNorm(16), attention=Attention(), mlp=mlp(16, 12, 16),
        out=nn.Linear(16, 2),
    )  # fmt: skip


@model({"branch_b": "b"}, 3, 4)
def layer_scale():
    # the scale closes the branch, and becomes a number
    def forward(m, x):
        x = m.stem(x)
        return m.out(m.f("b", x, lambda: m.scale * m.b(F.gelu(m.a(x)))))

    return Summed(
        forward, stem=nn.Linear(4, 8), a=nn.Linear(8, 7), b=nn.Linear(7, 8), scale=torch.rand(8), out=nn.Linear(8, 2)
    )


@model({"branch_b": "b"}, 3, 4)
def scalar_scale():
    def forward(m, x):
        x = m.stem(x)
        return m.out(m.f("b", x, lambda: m.b(F.gelu(m.a(x))) * m.scale))

    return Summed(
        forward, stem=nn.Linear(4, 8), a=nn.Linear(8, 7), b=nn.Linear(7, 8), scale=torch.tensor(0.3),
        out=nn.Linear(8, 2),
    )  # fmt: skip


@model({"branch_b": "b", "branch_d": "d"}, 3, 4)
def nested():
    def forward(m, x):
        def outer(y):
            return m.d(m.f("b", y, lambda: m.b(m.c(y).relu())))

        x = m.stem(x)
        return m.out(m.f("d", x, lambda: outer(m.a(x))))

    return Summed(
        forward, stem=nn.Linear(4, 8), a=nn.Linear(8, 6), c=nn.Linear(6, 5), b=nn.Linear(5, 6), d=nn.Linear(6, 8),
        out=nn.Linear(8, 2),
    )  # fmt: skip


@model({"branch_a": "a", "branch_b": "b"}, 3, 4)
def parallel():
    # attention and MLP of one norm, which stays while one of them does
    def forward(m, x):
        x = m.stem(x)
        h = m.norm(x)
        return m.out(m.f("b", m.f("a", x, lambda: m.a(h)), lambda: m.b(m.c(h).tanh())))

    return Summed(
        forward, stem=nn.Linear(4, 8), norm=nn.LayerNorm(8), a=nn.Linear(8, 8), c=nn.Linear(8, 5), b=nn.Linear(5, 8),
        out=nn.Linear(8, 2),
    )  # fmt: skip


@model({"branch_up": "up"}, 2, 1, 8, 8)
def hourglass():
    def forward(m, x):
        x = m.stem(x)
        return m.out(m.f("up", x, lambda: m.up(m.b(m.a(F.max_pool2d(x, 2)).relu()))).mean((2, 3)))

    return Summed(
        forward, stem=conv_bn(1, 4), a=conv_bn(4, 6), b=conv_bn(6, 5), up=nn.ConvTranspose2d(5, 4, 2, 2),
        out=nn.Linear(4, 2),
    )  # fmt: skip


@model({"branch_project": "project"}, 7, 2, 4)
def recurrent():
    def forward(m, x):
        x = m.stem(x)
        return m.out(m.f("project", x, lambda: m.project(m.lstm(x)[0])))

    return Summed(forward, stem=nn.Linear(4, 8), lstm=nn.LSTM(8, 6), project=nn.Linear(6, 8), out=nn.Linear(8, 2))


@pytest.fixture(scope="module")
def attached():
    """The models with gates, each made once."""
    made = {}

    def get(name):
        if name not in made:
            make, _, shape = MODELS[name]
            torch.manual_seed(1)
            net, x = make(), torch.randn(shape, dtype=torch.float64)
            for tensor in net.state_dict().values():
                if tensor.is_floating_point() and tensor.dim() < 2:
                    tensor.uniform_(0.5, 1.5)
            made[name] = gates.attach(net.double().eval(), x, branches="gate"), x
        return made[name]

    return get


@pytest.mark.parametrize("name", MODELS)
def test_closed_is_not_there(name, attached):
    """Against the model whose code leaves the branch out; every choice of branches, channels open and closed."""
    gated, x = attached(name)
    branches = MODELS[name][1]
    assert {n for n, group in gated.groups.items() if group.branch is not None} == set(branches)
    assert not gated.analysis.unknown
    everything = {n: torch.ones(group.size, dtype=torch.bool) for n, group in gated.groups.items()}
    generator = torch.Generator().manual_seed(0)
    for choice in range(1, 2 ** len(branches)):
        off = [n for i, n in enumerate(branches) if choice >> i & 1]
        opened = everything | {n: torch.zeros(1, dtype=torch.bool) for n in off}
        wanted = copy.deepcopy(gated.model)
        wanted.off = frozenset(branches[n] for n in off)
        gated.freeze(opened)
        with torch.no_grad():
            torch.testing.assert_close(gated(x), wanted(x), rtol=1e-12, atol=1e-12)
            small = gates.prune(gated)
            torch.testing.assert_close(small(x), wanted(x), rtol=1e-12, atol=1e-12)
        used = {n for n, p in wanted.named_parameters() if _reached(wanted, p, x)}
        if name == "parallel":  # what two branches share stays, though nobody may need it
            used |= {"norm.weight", "norm.bias"}
        assert {n for n, _ in small.named_parameters()} == used
        assert sum(p.numel() for p in small.parameters()) == gated.cost("parameters", opened)
        # channels too, inside of what is closed and outside
        for group, mask in opened.items():
            if group not in branches and len(mask) > 1:
                mask = torch.rand(len(mask), generator=generator) < 0.5
                mask[0] = True
                opened[group] = mask
        gated.freeze(opened)
        small = gates.prune(gated)
        with torch.no_grad():
            torch.testing.assert_close(small(x), gated(x), rtol=1e-10, atol=1e-10)
        assert sum(p.numel() for p in small.parameters()) == round(gated.cost("parameters", opened).item())
    gated.unfreeze()


def _reached(net, parameter, x):
    return torch.autograd.grad(net(x).square().sum(), parameter, allow_unused=True)[0] is not None


def test_work_that_is_left(attached):
    """FLOPs of the pruned model, counted anew."""
    for name in ("post_activation", "transformer", "nested"):
        gated, x = attached(name)
        first = next(iter(MODELS[name][1]))
        opened = {n: torch.ones(group.size, dtype=torch.bool) for n, group in gated.groups.items()}
        opened[first] = torch.zeros(1, dtype=torch.bool)
        gated.freeze(opened)
        again = gates.attach(gates.prune(gated), x)
        assert again.full_cost() == pytest.approx(gated.cost("flops", opened).item())
        assert again.full_cost() < gated.full_cost()
        gated.unfreeze()


def test_torch_layers():
    """Attention that returns a tuple, and fused layers that read what is inside them."""
    layers = {
        1: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2),
        2: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 12, batch_first=True, norm_first=True), 2),
    }
    for calls, stack in layers.items():
        net = Applied(lambda m, *x: m.out(m.stack(*x)), stack=stack, out=nn.Linear(8, 3)).double().eval()
        x = tuple(torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(calls))
        gated = gates.attach(net, x, branches="gate")
        branches = [n for n, group in gated.groups.items() if group.branch is not None]
        assert len(branches) == 2 * (calls + 1)
        for closed in (branches, branches[:1], branches[-1:]):
            for name, gate in gated.gates.items():
                gate.weight.data.fill_(-1.0 if name in closed else 1.0)
            small = gates.prune(gated)
            with torch.no_grad():
                torch.testing.assert_close(small(*x), gated(*x), rtol=1e-10, atol=1e-10)
            assert sum(p.numel() for p in small.parameters()) == gated.cost("parameters", gated.opened())


LEFT = {
    "batch_norm without a weight": (
        lambda m, x: m.out(m.norm(m.a(x)) + x),
        {"a": nn.Linear(8, 8), "norm": nn.BatchNorm1d(8, affine=False)},
    ),
    "used elsewhere": (lambda m, x: m.out((lambda y: y + m.a(y).relu())(x + m.a(x).relu())), {"a": nn.Linear(8, 8)}),
    "operation lstm": (lambda m, x: m.out(x + m.a(x)[0]), {"a": nn.LSTM(8, 8)}),
    "operation sigmoid": (lambda m, x: m.out(x + m.a(x).sigmoid()), {"a": nn.Linear(8, 8)}),
    "not made of modules": (lambda m, x: m.out(x + x @ m.a), {"a": torch.randn(8, 8)}),
}


@pytest.mark.parametrize("why", LEFT)
def test_left_as_they_are_and_said_so(why):
    forward, modules = LEFT[why]
    net = Applied(
        lambda m, x: forward(m, m.down(m.up(x).relu())), up=nn.Linear(4, 5), down=nn.Linear(5, 8),
        out=nn.Linear(8, 2), **modules,
    ).eval()  # fmt: skip
    gated = gates.attach(net, torch.randn(3, 4), branches="gate")
    assert all(group.branch is None for group in gated.groups.values())
    assert any(text.startswith("residual branch: ") and why in text for text in gated.analysis.unknown.values())


def test_sums_that_are_no_branches():
    """Of different inputs, or of parameters alone."""

    def forward(m, i, x):
        tokens = m.tokens(i) + m.positions(torch.arange(5))
        return m.out((tokens + m.bias + m.other(x)).relu())

    net = Applied(
        forward, tokens=nn.Embedding(9, 8), positions=nn.Embedding(5, 8), bias=torch.randn(5, 8), other=nn.Linear(3, 8),
        out=nn.Linear(8, 2),
    )  # fmt: skip
    gated = gates.attach(net, (torch.randint(9, (2, 5)), torch.randn(2, 5, 3)), branches="gate")
    assert [group.branch for group in gated.groups.values()] == [None]
    with pytest.raises(ValueError, match="argument 'branches'"):
        gates.attach(net, torch.randn(1, 4), branches="all")


def test_a_closed_branch_has_a_gradient(attached):
    """The derivative by a factor on the branch, open and closed."""
    gated, x = attached("transformer")
    for name in ("branch_attention", "branch_mlp"):
        for value in (0.0, 1.0):
            values = {n: torch.ones(g.size, dtype=torch.float64) for n, g in gated.groups.items()}
            values[name] = torch.full((1,), value, dtype=torch.float64, requires_grad=True)
            (slope,) = torch.autograd.grad(gated.bound(values)(x).square().sum(), values[name])
            up, down = (values | {name: torch.full((1,), value + h, dtype=torch.float64)} for h in (1e-5, -1e-5))
            with torch.no_grad():
                numeric = (gated.bound(up)(x).square().sum() - gated.bound(down)(x).square().sum()) / 2e-5
            torch.testing.assert_close(slope[0], numeric, rtol=1e-6, atol=1e-6)
            assert slope.abs() > 1e-3


def test_plan_and_optimizer(attached, tmp_path):
    gated, x = attached("layer_scale")
    gated.freeze({"branch_b": torch.zeros(1, dtype=torch.bool)})
    found = gates.plan(gated)
    assert [part.gives for part in found.removed] == ["number", "input", "zero"]
    found.save(tmp_path / "p.json")
    loaded = gates.PrunePlan.load(tmp_path / "p.json")
    assert loaded.removed == found.removed
    small = gates.prune(gated)
    fresh = MODELS["layer_scale"][0]().double().eval()
    assert torch.equal(loaded.apply(fresh)(x), small(x))
    optimizer = torch.optim.Adam(gated.parameters())
    gated(x).sum().backward()
    optimizer.step()
    carried = found.transfer_optimizer(optimizer, gated, small)
    assert {id(p) for group in carried.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    text = (tmp_path / "p.json").read_text().replace('"zero"', '"code"')
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"PrunePlan\.load.*gives 'code'"):
        gates.PrunePlan.load(tmp_path / "p.json")
    gated.unfreeze()


def test_budgets(attached):
    """A branch counts once, and its units nothing without it; floors do not keep it."""
    gated, _ = attached("transformer")
    opened = {n: torch.ones(g.size, dtype=torch.float64) for n, g in gated.groups.items()}
    share = {n: gated.cost("flops", opened | {n: torch.zeros(1)}) / gated.full_cost() for n in opened if "branch" in n}
    closed = opened | {n: torch.zeros(1, dtype=torch.float64) for n in share}
    apart = 1 - sum(1 - value for value in share.values())
    assert gated.cost("flops", closed) / gated.full_cost() == pytest.approx(apart.item())
    # what is worth nothing goes, even if that is a whole branch
    scores = {n: torch.ones(g.size, dtype=torch.float64) for n, g in gated.groups.items()}
    worthless = scores | {"branch_attention": torch.tensor([-1.0])}
    target = share["branch_attention"].item()
    found = gates.project(gated, target, scores=worthless, apply=False)
    assert not found.opened["branch_attention"].any()
    assert found.share <= target
    assert found.met
    # of equal worth, a branch is no cheaper to lose than its units
    found = gates.project(gated, 0.8, scores=scores, apply=False)
    assert found.opened["branch_attention"].all()
    assert found.opened["branch_mlp"].all()
    assert found.met
    # below what one unit of every branch costs, only without one
    found = gates.project(gated, 0.2, apply=False)
    assert found.share <= 0.2
    assert not (found.opened["branch_attention"].all() and found.opened["branch_mlp"].all())
    floors = dict.fromkeys(gated.groups, 1)
    found = gates.project(gated, 0.6, floors=floors, scores=worthless, apply=False)
    assert found.opened["branch_attention"].all()


def test_measured_trained_and_reported():
    """A branch that does nothing is found by masking, and closed by fit."""
    torch.manual_seed(0)
    make = MODELS["one_module"][0]
    net, x = make(), torch.randn(64, 4)
    with torch.no_grad():
        wanted = net.out(net.stem(x))
    gated = gates.attach(net.requires_grad_(False), x[:1], branches="gate")

    def loss(model, batch):
        return (model(batch) - wanted).square().mean()

    scores = gates.importance_by_masking(gated, lambda model: loss(model, x))
    assert scores["branch_mlp"] < 0
    result = gates.fit(gated, loss, [x], target=0.34, steps=20, freeze_at=1, gate_learning_rate=0.1, progress=False)
    assert gated.gates["branch_mlp"].weight < 0 < gated.gates["mlp_1"].weight.min()
    assert not result.projection.opened["branch_mlp"].any()
    assert result.projection.share == pytest.approx(1 / 3)
    text = str(gates.report(gated, measure=False))
    assert "branch_mlp       0       1" in text
    assert "mlp_1            0       6" in text
    table = dict.fromkeys(gates.measure_latency(gated, repeats=1), (1.0, 1.0))
    opened = {n: mask.double() for n, mask in gated.opened().items()}
    left = gates.Cost(gated, "latency", table)(opened)
    assert left.item() == pytest.approx(2 / 4)  # two of four layers are its own, fixed times included
