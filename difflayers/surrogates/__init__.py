"""Smooth and convex stand-ins for combinatorial problems."""

from .convex import ConvexLayer
from .projections import project_box, project_capped_simplex, project_l1_ball, project_l2_ball, project_simplex

__all__ = [
    "ConvexLayer",
    "project_box",
    "project_capped_simplex",
    "project_l1_ball",
    "project_l2_ball",
    "project_simplex",
]
