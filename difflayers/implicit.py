"""Gradients of solutions of equations, by the implicit function theorem: right whatever solver found the solution."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _checks
from .errors import SolverError, UnsupportedOperationError

__all__ = ["fixed_point", "root"]

SOLVES = ("dense", "cg", "neumann")
POLICIES = ("raise", "zero", "nan")
Solve = str | Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def root(
    optimality: Callable[..., Tensor],
    solution: Tensor,
    *arguments: Any,
    batch_dims: int = 0,
    solve: Solve = "dense",
    tolerance: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
) -> Tensor:
    r"""Gives the root of an equation, however it was found, its gradient.

    The root $x^\star(a)$ of $F(x, a) = 0$ has by the implicit function theorem, where $\partial_x F$ is regular,

    $$\partial_a x^\star = -(\partial_x F)^{-1} \partial_a F, \qquad
      \nabla_a = -(\partial_a F)^\top u, \quad (\partial_x F)^\top u = g.$$

    Backward evaluates F once, solves one linear system by products with $(\partial_x F)^\top$ and takes one more such
    product: time and memory do not depend on how many steps the solver took. A minimum is a root of its gradient.

    Args:
        optimality: F; `optimality(x, *arguments)` has the shape and dtype of x, is zero at solutions and is built of
            differentiable operations of torch. Gradients go to `arguments` alone, not to tensors that F closes over.
        solution: x*, float32 or float64, `[*batch, *problem]`; any gradient that it has is cut.
        arguments: whatever F takes besides x; the tensors among them that require a gradient get one.
        batch_dims: how many leading dimensions of x are separate problems: F of one problem must not depend on x of
            another.
        solve: how the linear systems are solved. "dense": the matrices are formed, p products for p numbers in a
            problem, and factorised; "cg": conjugate gradients, for a symmetric positive definite $\partial_x F$, the
            Hessian of a minimum; "neumann": $u = \sum_k (I - \partial_x F)^{\top k} g$, for a spectral radius of
            $I - \partial_x F$ below 1; or a function of (product, g) -> u with product(u) = $(\partial_x F)^\top u$.
        tolerance: the largest entry of |F| at which x* counts as a solution; default 1e-6 in float64, 1e-3 in
            float32; `math.inf` trusts x*.
        max_steps: of "cg" and "neumann".
        on_failure: what happens to the problems of which x* is no solution, or whose linear system has no solution or
            does not converge: "raise"; "zero": their gradient is zero; "nan": it is NaN. The value is x* in any case.

    Returns:
        x*, the same values, differentiable by the arguments.

    Raises:
        TypeError: a solution that is no floating-point tensor; an argument of the wrong type.
        ValueError: a value of F of another shape, or an argument out of its range.
        SolverError: with on_failure="raise", naming the first such problem (a flat index) and what is wrong there; in
            the call for the residual, in backward for the linear system. Its `rows` are all of them.
        UnsupportedOperationError: under torch.func.

    Cost:
        Forward one evaluation of F. Backward one evaluation, and for b problems of p numbers: dense p products and
        O(b p^3) time, O(b p^2) memory; "cg" and "neumann" one product a step and O(b p) memory.

    Transforms:
        backward, double backward (the right one, by the same theorem), DDP, checkpointing; torch.compile breaks the
        graph; torch.func raises.

    References:
        Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert, "Efficient and Modular Implicit
        Differentiation", NeurIPS 2022, arXiv 2105.15183, equation 2 and section 2.1.

    Example:
        >>> import torch, difflayers as dl
        >>> a = torch.tensor([4.0, 9.0], requires_grad=True)
        >>> x = dl.implicit.root(lambda x, a: x * x - a, a.detach().sqrt(), a, batch_dims=1)
        >>> x.sum().backward()
        >>> a.grad  # 1 / (2 sqrt(a))
        tensor([0.2500, 0.1667])
    """
    return _attach("difflayers.implicit.root", optimality, solution, arguments, batch_dims, solve, tolerance, max_steps,
                   on_failure)  # fmt: skip


def fixed_point(
    step: Callable[..., Tensor],
    solution: Tensor,
    *arguments: Any,
    batch_dims: int = 0,
    solve: Solve = "dense",
    tolerance: float | None = None,
    max_steps: int = 1000,
    on_failure: str = "raise",
) -> Tensor:
    r"""Gives the fixed point of an iteration, however it was found, its gradient.

    $x^\star = f(x^\star, a)$ is the root of $F(x, a) = x - f(x, a)$; see `root`. With solve="neumann" backward iterates
    the adjoint of f as often as it takes, which converges where the iteration itself does.

    Args:
        step: f; `step(x, *arguments)` has the shape and dtype of x.
        solution: x*, as in `root`.
        arguments: as in `root`.
        batch_dims: as in `root`.
        solve: as in `root`, of the matrix $I - \partial_x f$.
        tolerance: the largest entry of |x* - f(x*)| at which x* counts as a fixed point; default as in `root`.
        max_steps: as in `root`.
        on_failure: as in `root`.

    Returns:
        x*, the same values, differentiable by the arguments.

    Raises:
        As `root`.

    Cost, transforms:
        As `root`.

    References:
        As `root`, equation 3.

    Example:
        >>> import torch, difflayers as dl
        >>> a = torch.tensor(2.0, requires_grad=True)
        >>> x = torch.tensor(1.0)
        >>> for _ in range(10):  # Newton's iteration for the square root
        ...     x = (x + 2.0 / x) / 2
        >>> dl.implicit.fixed_point(lambda x, a: (x + a / x) / 2, x, a).backward()
        >>> a.grad  # 1 / (2 sqrt(2))
        tensor(0.3536)
    """
    function = "difflayers.implicit.fixed_point"
    if not callable(step):
        raise TypeError(f"{function}: argument 'step' must be callable, got {type(step).__name__}")

    def optimality(x: Tensor, *rest: Any) -> Tensor:
        image = step(x, *rest)
        # shapes are compared later; x - image would broadcast a wrong one
        return x - image if isinstance(image, Tensor) and image.shape == x.shape else image

    return _attach(function, optimality, solution, arguments, batch_dims, solve, tolerance, max_steps, on_failure)


def _attach(
    function: str, optimality: Callable[..., Tensor], solution: Tensor, arguments: tuple[Any, ...], batch_dims: int,
    solve: Solve, tolerance: float | None, max_steps: int, on_failure: str,
) -> Tensor:  # fmt: skip
    if torch.compiler.is_dynamo_compiling():
        from ._untraced import call

        return call(_attach, function, optimality, solution, arguments, batch_dims, solve, tolerance, max_steps,
                    on_failure)  # fmt: skip
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        raise UnsupportedOperationError(
            f"{function}: a check of the solution cannot be traced by torch.export or torch.func; call it outside of "
            f"them, with batch_dims in place of vmap"
        )
    if not callable(optimality):
        raise TypeError(f"{function}: argument 'optimality' must be callable, got {type(optimality).__name__}")
    solution = _checks.tensor(function, "solution", solution).detach()
    if solution.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{function}: argument 'solution' must be float32 or float64, got {str(solution.dtype)[6:]}; convert it "
            f"with solution.float()"
        )
    batch_dims = _checks.integer(function, "batch_dims", batch_dims, minimum=0, maximum=solution.dim())
    if not callable(solve):
        solve = _checks.choice(function, "solve", solve, SOLVES)
    if tolerance is None:
        tolerance = 1e-6 if solution.dtype == torch.float64 else 1e-3
    elif tolerance != math.inf:
        tolerance = _checks.number(function, "tolerance", tolerance, minimum=0)
    max_steps = _checks.integer(function, "max_steps", max_steps, minimum=1)
    on_failure = _checks.choice(function, "on_failure", on_failure, POLICIES)

    with torch.no_grad():
        value = optimality(solution, *arguments)
    if not isinstance(value, Tensor) or value.shape != solution.shape or value.dtype != solution.dtype:
        got = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"{function}: the function must return a tensor like the solution, {solution.dtype} "
            f"{tuple(solution.shape)}, got {got}"
        )
    system = _System(function, optimality, batch_dims, solve, max_steps, on_failure)
    residual = system.rows(value).abs().amax(-1) if value.numel() else value.new_zeros(system.rows(value).shape[0])
    failed = ~(residual <= tolerance) if tolerance < math.inf else torch.zeros_like(residual, dtype=torch.bool)
    if on_failure == "raise" and bool(failed.any()):
        row = int(failed.nonzero()[0])
        raise SolverError(
            f"{function}: argument 'solution' must be a solution to {tolerance:g}, got a residual of "
            f"{float(residual[row]):.3g} in problem {row} ({int(failed.sum())} of {len(failed)} problems); iterate "
            f"longer, raise tolerance, or pass on_failure='zero'",
            failed.nonzero().flatten().tolist(),
        )
    return _Root.apply(system, failed, solution, *arguments)


class _System:
    """What backward needs besides tensors."""

    def __init__(
        self, function: str, optimality: Callable[..., Tensor], batch_dims: int, solve: Solve, max_steps: int,
        on_failure: str,
    ) -> None:  # fmt: skip
        self.function, self.optimality, self.batch_dims = function, optimality, batch_dims
        self.solve, self.max_steps, self.on_failure = solve, max_steps, on_failure

    def rows(self, x: Tensor) -> Tensor:
        """A problem a row."""
        count = math.prod(x.shape[: self.batch_dims])
        return x.reshape(count, math.prod(x.shape[self.batch_dims :]))

    def solved(self, product: Callable[[Tensor], Tensor], g: Tensor, failed: Tensor) -> tuple[Tensor, Tensor]:
        """u with product(u) = g, and which problems have failed by now; u is 0 there."""
        g = torch.where(failed.unsqueeze(-1), 0, self.rows(g)).view_as(g)
        if callable(self.solve):
            u = self.rows(self.solve(product, g))
            good = torch.ones_like(failed)
        else:
            u, good = {"dense": _dense, "cg": _conjugate_gradients, "neumann": _neumann}[self.solve](
                lambda v: self.rows(product(v.view_as(g))), self.rows(g), self.max_steps
            )
        bad = ~failed & ~(good & u.isfinite().all(-1))
        if self.on_failure == "raise" and bool(bad.any()):
            row = int(bad.nonzero()[0])
            why = "is singular" if self.solve == "dense" else f"was not solved in {self.max_steps} steps"
            raise SolverError(
                f"{self.function}: the linear system of problem {row} {why} ({int(bad.sum())} of {len(bad)} problems); "
                f"its gradient does not exist or needs another solve; on_failure='zero' gives zero",
                bad.nonzero().flatten().tolist(),
            )
        failed = failed | bad
        return torch.where(failed.unsqueeze(-1), 0, u).view_as(g), failed


class _Root(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, system: _System, failed: Tensor, solution: Tensor, *arguments: Any) -> Tensor:
        result = solution.clone()
        ctx.system = system
        ctx.places = [i for i, a in enumerate(arguments) if isinstance(a, Tensor)]
        ctx.rest = [None if isinstance(a, Tensor) else a for a in arguments]
        ctx.save_for_backward(failed, result, *(arguments[i] for i in ctx.places))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (g,) = gradients
        system: _System = ctx.system
        failed, solution, *tensors = ctx.saved_tensors
        twice = torch.is_grad_enabled()
        wanted = [ctx.needs_input_grad[3 + i] for i in ctx.places]

        with torch.enable_grad():
            # Aliases, so that differentiating by an argument does not go through the solution, which depends on it.
            # Where the solution is of no use, 0 is less likely than NaN to make NaN of a gradient that is to be zero.
            usable = solution if twice else solution.detach()
            if bool(failed.any()):
                usable = torch.where(failed.unsqueeze(-1) & ~system.rows(usable).isfinite(), 0, system.rows(usable))
            x = usable.reshape(solution.shape).view_as(solution)
            if not twice:
                x.requires_grad_()
            inner = [
                t.view_as(t) if twice else t.detach().requires_grad_(needed)
                for t, needed in zip(tensors, wanted, strict=True)
            ]

            def arguments_with(values: list[Tensor]) -> list[Any]:
                arguments = list(ctx.rest)
                for place, value in zip(ctx.places, values, strict=True):
                    arguments[place] = value
                return arguments

            value = system.optimality(x, *arguments_with(inner))

            def product(u: Tensor) -> Tensor:
                return _vjp(value, x, u)

            u, failed = system.solved(product, g.detach(), failed)
            if twice:
                u = _Root.apply(_Adjoint(system, arguments_with), failed, u.detach(), x, g, *inner)
            chosen = [t for t, needed in zip(inner, wanted, strict=True) if needed]
            derivatives: Any = [None] * len(chosen)
            if value.requires_grad:
                derivatives = torch.autograd.grad(value, chosen, -u, create_graph=twice, allow_unused=True)
            found = iter(derivatives)
        result: list[Any] = [None] * len(ctx.rest)
        for place, tensor, needed in zip(ctx.places, inner, wanted, strict=True):
            if needed:
                of_argument = next(found)
                of_argument = torch.zeros_like(tensor) if of_argument is None else of_argument
                result[place] = _marked(system, of_argument, failed, solution)
        return None, None, None, *result


def _vjp(value: Tensor, x: Tensor, u: Tensor, create_graph: bool = False) -> Tensor:
    if not value.requires_grad:
        return torch.zeros_like(x)
    (result,) = torch.autograd.grad(value, x, u, retain_graph=True, create_graph=create_graph, allow_unused=True)
    return torch.zeros_like(x) if result is None else result


def _marked(system: _System, gradient: Tensor, failed: Tensor, solution: Tensor) -> Tensor:
    """NaN where a problem has failed and NaN is asked for: in its rows of arguments that have the batch's dimensions,
    and all over arguments that every problem shares."""
    if system.on_failure != "nan" or not bool(failed.any()):
        return gradient
    batch = solution.shape[: system.batch_dims]
    if system.batch_dims and gradient.shape[: system.batch_dims] == batch:
        marks = failed.view(batch)[(..., *(None,) * (gradient.dim() - len(batch)))]
        return torch.where(marks, torch.nan, gradient)
    return torch.full_like(gradient, torch.nan)


class _Adjoint(_System):
    """The linear system of a backward pass as an equation for u: F'(x, arguments)^T u - g = 0."""

    def __init__(self, outer: _System, arguments_with: Callable[[list[Tensor]], list[Any]]) -> None:
        def optimality(u: Tensor, x: Tensor, g: Tensor, *tensors: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x if x.requires_grad else x.detach().requires_grad_()
                return _vjp(outer.optimality(x, *arguments_with(list(tensors))), x, u, create_graph=True) - g

        super().__init__(outer.function, optimality, outer.batch_dims, outer.solve, outer.max_steps, outer.on_failure)


Solved = tuple[Tensor, Tensor]  # u [b, p], and which rows are solved [b]


def _dense(product: Callable[[Tensor], Tensor], g: Tensor, max_steps: int) -> Solved:
    columns = [product(unit.expand_as(g)) for unit in torch.eye(g.shape[1], dtype=g.dtype, device=g.device)]
    if not columns:
        return g, torch.ones(len(g), dtype=torch.bool, device=g.device)
    matrix = torch.stack(columns, -1).detach()
    defined = matrix.isfinite().flatten(1).all(-1)
    matrix = torch.where(defined[:, None, None], matrix, torch.eye(g.shape[1], dtype=g.dtype, device=g.device))
    u, info = torch.linalg.solve_ex(matrix, g.unsqueeze(-1))
    # elimination turns a singular matrix into a pivot of rounding errors, and the result into noise of that size
    size, smallest = torch.linalg.matrix_norm(matrix), 1 / torch.finfo(g.dtype).eps
    grown = u.squeeze(-1).norm(dim=-1) * size > smallest * g.norm(dim=-1)
    return u.squeeze(-1), defined & (info == 0) & ~grown


def _precision(g: Tensor) -> Tensor:
    """Where the iterations stop: the length of the rest of each row's system."""
    return 1e3 * torch.finfo(g.dtype).eps * g.norm(dim=-1)


def _conjugate_gradients(product: Callable[[Tensor], Tensor], g: Tensor, max_steps: int) -> Solved:
    limit = _precision(g)
    u, rest, direction = torch.zeros_like(g), g, g
    square = rest.square().sum(-1)
    definite = torch.ones_like(limit, dtype=torch.bool)
    for _ in range(max_steps):
        active = definite & (square.sqrt() > limit)
        if not bool(active.any()):
            break
        image = product(direction).detach()
        curvature = (direction * image).sum(-1)
        definite &= ~active | (curvature > 0)
        active &= definite
        length = torch.where(active, square / curvature, 0).unsqueeze(-1)
        u, rest = u + length * direction, rest - length * torch.where(active.unsqueeze(-1), image, 0)
        after = rest.square().sum(-1)
        direction = torch.where(active.unsqueeze(-1), rest + (after / square).unsqueeze(-1) * direction, direction)
        square = torch.where(active, after, square)
    return u, definite & (square.sqrt() <= limit)


def _neumann(product: Callable[[Tensor], Tensor], g: Tensor, max_steps: int) -> Solved:
    limit = _precision(g)
    u, term = g, g
    for _ in range(max_steps):
        term = (term - product(term)).detach()
        if not bool((term.norm(dim=-1) > limit).any()):
            break
        u = u + term
    return u, term.norm(dim=-1) <= limit
