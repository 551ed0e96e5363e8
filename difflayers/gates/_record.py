"""A model's graph of operators, recorded while it runs on tensors without data.

Under `torch.inference_mode` an operator reaches a dispatch mode as it was called (`linear`, `conv2d`), and tensors of a
`FakeTensorMode` have shapes and no values: a run costs no arithmetic, and a forward that asks for a value is found out.
`torch.export` records the same graph, some fifty times slower.
"""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import UnsupportedOperationError
from ._packed import as_padded

__all__ = ["Recorded", "exported", "recorded", "traced"]


class Recorded(NamedTuple):
    """A graph of operators, and the parameter or buffer that each placeholder stands for (inputs stand for none)."""

    graph: fx.Graph
    names: dict[str, str]


def traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded:
    """The model's graph in evaluation mode; by `torch.export` where the model cannot be recorded. The model is left as
    it is."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with as_padded(model):
            try:
                return recorded(model, args, kwargs)
            except Exception as error:
                try:
                    return exported(model, args, kwargs)
                except Exception:
                    raise _untraceable(error) from error
    finally:
        for module, training in modes.items():
            module.training = training


def _untraceable(error: Exception) -> UnsupportedOperationError:
    if isinstance(error, UnsupportedOperationError):
        return error
    said = str(error).splitlines()[0] if str(error) else ""
    return UnsupportedOperationError(
        f"difflayers.gates.attach: the model cannot be traced ({type(error).__name__}: {said}); control flow that "
        f"depends on values must be taken out of the forward, or the part that can be traced be gated by itself"
    )


def first_names(model: nn.Module) -> dict[int, str]:
    """The names of parameters and buffers by their ids; one under several names goes by its first."""
    names: dict[int, str] = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            names.setdefault(id(tensor), name)
    return names


Bare = Callable[[Tensor, Any], Any]  # a tensor without data in place of a tensor, of this shape


def bared(model: nn.Module, bare: Bare) -> nn.Module:
    """A copy of a model whose tensors have no data."""
    return copy.deepcopy(model, {id(t): bare(t, t.shape) for t in (*model.parameters(), *model.buffers())})


def recorded(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    copied: Callable[[nn.Module, Bare], nn.Module] = bared,
) -> Recorded:
    """The graph of a run of a copy of the model that `copied` makes."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # takes long to import

    fake = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(tensor: Tensor, shape: Any) -> Any:
        kind: Any = {"dtype": tensor.dtype, "device": "meta"}
        same = tuple(shape) == tensor.shape
        data = torch.empty_strided(shape, tensor.stride(), **kind) if same else torch.empty(shape, **kind)
        return FakeTensor(fake, data, tensor.device)  # what the mode makes as well, by a long way

    recorder = _Recorder(fake, empty)

    def bare(tensor: Tensor, shape: Any) -> Any:
        result = empty(tensor, shape)
        if isinstance(tensor, nn.Parameter):
            result._is_param = True
        return result

    def given(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = fake.from_tensor(value, static_shapes=True)
        recorder.placeholder(value, "input")
        return value

    model = copied(model, bare)
    tensors = [*model.parameters(), *model.buffers()]
    known = first_names(model)
    names = {recorder.placeholder(tensor, known[id(tensor)]).name: known[id(tensor)] for tensor in tensors}
    args, kwargs = tree_map(given, (args, kwargs))
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda m, _, path=path: recorder.enter(path, m))
        module.register_forward_hook(lambda *_: recorder.leave(), always_call=True)
    with _quietly(), torch.inference_mode(), recorder:
        result = model(*args, **kwargs)
    recorder.output(result)
    return Recorded(recorder.graph, names)


ELEMENTWISE = {torch.ops.aten.relu.default, torch.ops.aten.gelu.default, torch.ops.aten.silu.default}
ELEMENTWISE |= {torch.ops.aten.sigmoid.default, torch.ops.aten.tanh.default, torch.ops.aten.add.Tensor}


def _like_first(func: Any, args: Any) -> bool:
    """Whether an operator surely makes a contiguous tensor of the shape and dtype of its first argument."""
    if func not in ELEMENTWISE and func is not torch.ops.aten.batch_norm.default:
        return False
    first, *others = [a for a in args if isinstance(a, Tensor)]
    if first is not args[0] or not first.is_floating_point() or not first.is_contiguous():
        return False
    if func is torch.ops.aten.batch_norm.default:
        return not args[5] and first.dim() > 1 and all(o.shape == first.shape[1:2] for o in others)
    if not all(isinstance(a, (int, float, Tensor)) for a in args):
        return False
    return all(o.shape == first.shape and o.dtype == first.dtype and o.is_contiguous() for o in others)


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing is printed of what goes wrong, and torch's fused encoder layer, an operator that says nothing, is not
    used."""
    log, fast = logging.getLogger("torch._subclasses.fake_tensor"), torch.backends.mha.get_fastpath_enabled()
    before = log.disabled
    log.disabled = True
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before
        torch.backends.mha.set_fastpath_enabled(fast)


class _Recorder(TorchDispatchMode):
    """Writes down every operator that is called, with the module that calls it.

    `fake` is the mode that runs it, `empty` makes a tensor without data that is like another."""

    def __init__(self, fake: Any, empty: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        self.fake, self.empty = fake, empty
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.tensors: list[Tensor] = []  # kept, so that ids stay theirs
        self.modules: list[tuple[str, type]] = []

    def enter(self, path: str, module: nn.Module) -> None:
        """A module's forward begins."""
        self.modules.append((path, type(module)))

    def leave(self) -> None:
        """And ends."""
        self.modules.pop()

    def placeholder(self, tensor: Tensor, name: str) -> fx.Node:
        """A node for a tensor that comes from outside."""
        return self._bind(self.graph.create_node("placeholder", name, name=name.replace(".", "_")), tensor)

    def _bind(self, node: fx.Node, value: Any) -> fx.Node:
        node.meta = {"val": value, "nn_module_stack": {path: (path, kind) for path, kind in self.modules}}
        if isinstance(value, Tensor):
            self.nodes[id(value)] = node
            self.tensors.append(value)
        elif isinstance(value, (tuple, list)):
            for i, part in enumerate(value):
                if isinstance(part, Tensor):
                    self._bind(self.graph.create_node("call_function", operator.getitem, (node, i)), part)
        return node

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes:
            return self.placeholder(
                value, "constant"
            )  # that the model keeps outside of its buffers, or makes of numbers
        return self.nodes[id(value)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

        kwargs = kwargs or {}
        given = (
            map_aggregate(tuple(args), self._node_of),
            map_aggregate(kwargs, self._node_of),
        )  # before it changes them
        try:
            result = self._result(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            path = self.modules[-1][0] if self.modules else ""
            nodes = [node.name for node in tree_leaves(given) if isinstance(node, fx.Node)]
            place = f"module '{path}'" if path else "the model's own forward"
            raise UnsupportedOperationError(
                f"difflayers.gates.attach: the model cannot be traced: operation {func} on {', '.join(nodes)!r} "
                f"({place}) asks for values; control flow that depends on values must be taken out of the forward, or "
                f"the part that can be traced be gated by itself"
            ) from error
        leaves = result if isinstance(result, (tuple, list)) else [result]
        if func._schema.is_mutable or any(isinstance(leaf, Tensor) for leaf in leaves):
            self._bind(self.graph.create_node("call_function", func, *given, name=func._opname), result)
        return result

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        if not kwargs and _like_first(func, args):  # most of a network's operators, and the mode takes long for each
            return self.empty(args[0], args[0].shape)
        with self.fake:
            return func(*args, **kwargs)

    def output(self, value: Any) -> None:
        """The model's result."""
        leaves = tree_leaves(value)
        for leaf in leaves:
            if not (leaf is None or isinstance(leaf, (Tensor, int, float, complex, str))):
                raise TypeError(f"the forward returns a {type(leaf).__name__}, which may hold tensors")
        self.graph.output([self._node_of(leaf) for leaf in leaves if isinstance(leaf, Tensor)])


def exported(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recorded:
    """The graph of `torch.export`."""
    with _quietly(), torch.no_grad():
        program = torch.export.export(model, args, kwargs, strict=False)
    signature = program.graph_signature
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names, known = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}, first_names(model)
    return Recorded(program.graph, {key: known[id(tensors[name])] for key, name in names.items() if name in tensors})
