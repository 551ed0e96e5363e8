"""Residual branches: where x + f(x) is, and what of the model is f alone."""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ._propagate import MOVES, operator_name
from .removed import Part

if TYPE_CHECKING:
    from ._analysis import Analysis, Group

__all__ = ["Branch", "closed_parts", "find", "inside", "with_branches"]

# of zeros they make zeros; and what is not zero they do not make zero for good, so that a closed gate has a gradient
# (but for relu and its like, whose slope at 0 is 0 in torch)
KEEPS_ZERO = MOVES | {
    "relu", "relu6", "gelu", "silu", "tanh", "leaky_relu", "elu", "selu", "celu", "hardswish", "mish", "softsign",
    "dropout", "feature_dropout", "neg", "abs", "to", "_to_copy", "type_as", "float", "contiguous", "clone", "alias",
    "mean", "sum", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d",
}  # fmt: skip
# operators that end in weight and bias: the places of both among their arguments
AFFINE = {
    "linear": (1, 2), "conv1d": (1, 2), "conv2d": (1, 2), "conv3d": (1, 2), "convolution": (1, 2),
    "conv_transpose1d": (1, 2), "conv_transpose2d": (1, 2), "conv_transpose3d": (1, 2), "batch_norm": (1, 2),
    "layer_norm": (2, 3), "rms_norm": (2,), "group_norm": (2, 3), "instance_norm": (1, 2),
}  # fmt: skip
PRODUCTS = {"mul", "multiply", "matmul", "bmm", "mm"}


class Branch(NamedTuple):
    """f of an addition x + f(x).

    Attributes:
        name: of its group.
        nodes: the graph's nodes that only f needs.
        parameters: those that only f needs, and buffers.
        ends: of these, what makes f zero when it is zero: the last weights and biases.
        parts: what is taken out, and what stands there then.
    """

    name: str
    nodes: frozenset[str]
    parameters: frozenset[str]
    ends: tuple[str, ...]
    parts: tuple[Part, ...]


def with_branches(
    analysis: Analysis,
    model: nn.Module,
    args: Any,
    kwargs: Any,
    *,
    graph: fx.Graph,
    names: dict[str, str],
    work: list[str],
    trainable: list[str],
) -> Analysis:
    """The analysis with a group of one unit for every residual branch; all that the branch is costs nothing without it.

    `work` are the nodes of the terms of FLOPs, `trainable` the names of those of parameters.
    """
    from ._analysis import Factor, Group

    macs: dict[str, float] = {}
    for node, term in zip(work, analysis.flops, strict=True):
        macs[node] = macs.get(node, 0.0) + term.amount
    found, left = find(graph, names, trainable, macs)
    found = _outputs(model, args, kwargs, found)
    one, at = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)

    def factors(branches: list[Branch]) -> tuple[Factor, ...]:
        return tuple(Factor(0.0, {branch.name: one}, 1.0) for branch in branches)

    flops = [
        term._replace(factors=term.factors + factors([b for b in found if node in b.nodes]))
        for node, term in zip(work, analysis.flops, strict=True)
    ]
    parameters = [
        term._replace(factors=term.factors + factors([b for b in found if name in b.parameters]))
        for name, term in zip(trainable, analysis.parameters, strict=True)
    ]
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    groups = []
    for branch in found:
        places = tuple((name, 0) for name in branch.ends)
        units = {(name, 0): at.expand(shapes[name][0] if shapes[name] else 1) for name in branch.ends}
        groups.append(Group(branch.name, 1, units, places, branch))
    return analysis._replace(
        groups=analysis.groups + groups, flops=flops, parameters=parameters, unknown=analysis.unknown | left
    )


def inside(group: Group, groups: Iterable[Group]) -> list[str]:
    """The branches that a group is nothing without: all its parameters are theirs."""
    if group.branch is not None:
        return [
            other.name
            for other in groups
            if other.branch is not None and other is not group and group.branch.nodes < other.branch.nodes
        ]
    names = {name for name, _ in group.units}
    return [other.name for other in groups if other.branch is not None and names <= other.branch.parameters]


def closed_parts(groups: Mapping[str, Group], opened: Mapping[str, Tensor]) -> list[Part]:
    """What goes with the branches that are closed; of those within others, only the outer."""
    closed = {name for name, group in groups.items() if group.branch is not None and not bool(opened[name].any())}
    parts: list[Part] = []
    for name in sorted(closed):
        branch = groups[name].branch
        if branch is not None and not closed & set(inside(groups[name], groups.values())):
            parts += branch.parts
    return parts


def find(
    graph: fx.Graph, names: dict[str, str], trainable: Iterable[str], macs: dict[str, float]
) -> tuple[list[Branch], dict[str, str]]:
    """The branches of a graph, and the additions that look so but have to stay: by node, why.

    `names` says what parameter or buffer a placeholder is, `macs` how much work is done at a node.
    """
    alive = _alive(graph)
    order = {node: i for i, node in enumerate(graph.nodes)}
    parameters = set(trainable)
    holders: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in names:
            holders.setdefault(names[node.name], set()).update(user for user in node.users if user in alive)
    calls = _calls(alive)
    bit = {node: 1 << i for node, i in order.items()}  # sets of nodes as numbers: graphs are long
    activations = sum(bit[node] for node in graph.nodes if _activation(node, names))
    above: dict[fx.Node, int] = {}  # a node and all that it is made of
    for node in graph.nodes:
        above[node] = bit[node]
        for n in node.all_input_nodes:
            above[node] |= above[n]
    found: list[Branch] = []
    left: dict[str, str] = {}
    for node in graph.nodes:
        sides = _sides(node, alive)
        options = []
        for f, shortcut in (sides, sides[::-1]) if sides else ():
            region = _region(f, node, alive, order)
            of_it = frozenset(n for n, users in holders.items() if users and users <= region)
            fork = 0
            for source in {i for n in region for i in n.all_input_nodes} - region:
                fork |= above[source]
            if shortcut in region or not fork & above[shortcut] & activations:
                continue
            if of_it & parameters:
                options.append(
                    (bool(bit[shortcut] & above[f]), sum(macs.get(n.name, 0.0) for n in region), f, region, of_it)
                )
            elif any(names.get(i.name) in parameters for n in region for i in n.all_input_nodes):
                left[node.name] = "residual branch: its weights are used elsewhere as well"
        if not options:
            continue
        left.pop(node.name, None)
        *_, f, region, of_it = max(options, key=lambda option: option[:2])  # an identity is the shortcut, else
        ends = _ends(f, names, parameters, region)  # what does less work
        if isinstance(ends, str) or not set(ends) <= of_it:
            left[node.name] = f"residual branch: {ends if isinstance(ends, str) else 'its last weights are used twice'}"
            continue
        parts = _parts(calls, region, of_it & parameters, ends, order)
        if parts is None:
            left[node.name] = "residual branch: it is not made of modules that can be taken out"
            continue
        last = next(part.path for part in reversed(parts) if part.gives == "zero")
        name = "branch_" + last.replace(".", "_")
        while any(name == other.name for other in found):
            name += "_"
        found.append(Branch(name, frozenset(n.name for n in region), of_it, tuple(dict.fromkeys(ends)), parts))
    return found, left


def _alive(graph: fx.Graph) -> set[fx.Node]:
    """What an output depends on."""
    alive: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in alive for user in node.users):
            alive.add(node)
    return alive


def _sides(node: fx.Node, alive: set[fx.Node]) -> tuple[fx.Node, fx.Node] | None:
    """The two operands of an addition of equal shapes."""
    if node not in alive or node.op != "call_function" or operator_name(node) != "add":
        return None
    first, second = (*node.args, None, None)[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (node, first, second)]
    return (first, second) if shapes[0] == shapes[1] == shapes[2] and node.kwargs.get("alpha", 1) == 1 else None


def _region(f: fx.Node, addition: fx.Node, alive: set[fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    """f, and all that only f needs."""
    region: set[fx.Node] = set()
    waiting = [f]
    while waiting:
        waiting.sort(key=lambda n: order[n])
        node = waiting.pop()
        users = {user for user in node.users if user in alive}
        if node.op == "call_function" and node not in region and users <= (region or {addition}):
            region.add(node)
            waiting += [n for n in node.all_input_nodes if n not in waiting]
    return region


def _activation(node: fx.Node, names: dict[str, str]) -> bool:
    value = node.meta.get("val")
    return node.name not in names and isinstance(value, Tensor) and value.is_floating_point()


def _ends(node: Any, names: dict[str, str], parameters: set[str], region: set[fx.Node]) -> list[str] | str:
    """The parameters that make a node zero; or why none do."""
    if not isinstance(node, fx.Node):
        return "it ends in a constant"
    if node.op == "placeholder":
        name = names.get(node.name)
        return [name] if name in parameters else "it ends in a buffer or an input"
    if node not in region:
        return "it ends in what others need as well"
    if node.target is operator.getitem:
        source: Any = node.args[0]
        if operator_name(source) not in MOVES:
            return (
                f"it ends in operation {operator_name(source)} at module '{_path(source)}', which has no last weights"
            )
        return _ends(source, names, parameters, region)
    name = operator_name(node)
    if name in AFFINE:
        at = AFFINE[name]
        given = [
            node.args[i] if i < len(node.args) else node.kwargs.get("weight" if i == at[0] else "bias") for i in at
        ]
        if given[0] is None:
            return f"it ends in {name} without a weight, at module '{_path(node)}'"
        found = [_ends(each, names, parameters, region) for each in given if each is not None]
        return next((each for each in found if isinstance(each, str)), [n for each in found for n in each])
    if name == "addmm":
        return _all([_ends(node.args[i], names, parameters, region) for i in (0, 2)])
    if name == "add":
        return _all([_ends(each, names, parameters, region) for each in node.args[:2]])
    if name in ("cat", "concat", "stack") and isinstance(node.args[0], (list, tuple)):
        return _all([_ends(each, names, parameters, region) for each in node.args[0]])
    if name in PRODUCTS:  # the parameter before the activation: LayerScale
        sides = [n for n in node.args[:2] if isinstance(n, fx.Node)]
        sides.sort(key=lambda n: n.op != "placeholder")
        found = [_ends(each, names, parameters, region) for each in sides]
        return next((each for each in found if not isinstance(each, str)), found[0] if found else "it is a constant")
    if name == "embedding" or name in KEEPS_ZERO or name in ("div", "true_divide"):
        return _ends(node.args[0], names, parameters, region)
    return f"it ends in operation {name} at module '{_path(node)}', which has no last weights"


def _all(found: list[list[str] | str]) -> list[str] | str:
    wrong = [each for each in found if isinstance(each, str)]
    return wrong[0] if wrong else [name for each in found for name in each]


def _path(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""


def _stack(node: fx.Node) -> list[str]:
    """The paths of the modules that a node is in, outermost first; a second call of one has the same path."""
    return [re.sub(r"@\d+", "", path) for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _calls(alive: set[fx.Node]) -> dict[str, set[fx.Node]]:
    """The nodes of every module."""
    result: dict[str, set[fx.Node]] = {}
    for node in alive:
        if node.op == "call_function":
            for path in _stack(node):
                result.setdefault(path, set()).add(node)
    return result


def _parts(
    calls: dict[str, set[fx.Node]], region: set[fx.Node], of_it: frozenset[str], ends: list[str],
    order: dict[fx.Node, int],
) -> tuple[Part, ...] | None:  # fmt: skip
    """The outermost modules that only the branch calls, in the order of their last nodes, and parameters beside them;
    None if no module is."""
    whole = [path for path, nodes in calls.items() if path and nodes <= region]
    outer = [path for path in whole if not any(path.startswith(other + ".") for other in whole)]
    outer.sort(key=lambda path: max(order[n] for n in calls[path]))
    if not outer:
        return None
    zero = {path for path in outer if any(end.startswith(path + ".") for end in ends)} or {outer[-1]}
    parts = [Part(path, "zero" if path in zero else "input") for path in outer]
    beside = [name for name in sorted(of_it) if not any(name.startswith(path + ".") for path in outer)]
    return (*[Part(name, "number") for name in beside], *parts)


def _outputs(model: nn.Module, args: Any, kwargs: Any, branches: list[Branch]) -> list[Branch]:
    """The branches with what their modules return, a tensor or a tuple of how many, seen in one run."""
    seen: dict[str, int] = {}
    model, args, kwargs = copy.deepcopy((model, args, kwargs))  # a forward may write into buffers and inputs
    modules = dict(model.named_modules())
    for part in {part.path for branch in branches for part in branch.parts} & set(modules):

        def note(module: nn.Module, given: Any, result: Any, path: str = part) -> None:
            seen[path] = len(result) if isinstance(result, (tuple, list)) else 0

        modules[part].register_forward_hook(note)
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        model(*args, **kwargs)
    return [
        branch._replace(parts=tuple(part._replace(outputs=seen.get(part.path, 0)) for part in branch.parts))
        for branch in branches
    ]
