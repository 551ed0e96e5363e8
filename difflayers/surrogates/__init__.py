"""Smooth and convex stand-ins for combinatorial problems."""

from .convex import ConvexLayer
from .projections import project_box, project_capped_simplex, project_l1_ball, project_l2_ball, project_simplex
from .quadratic_program import QuadraticProgram

__all__ = [
    "ConvexLayer",
    "QuadraticProgram",
    "project_box",
    "project_capped_simplex",
    "project_l1_ball",
    "project_l2_ball",
    "project_simplex",
]
