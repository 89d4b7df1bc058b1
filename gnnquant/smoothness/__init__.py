"""Smoothness-aware propagation, and the smoothness constraint for any traced model."""

from gnnquant.smoothness.functional import (
    dirichlet_energy,
    laplacian_quadratic_form,
    mean_neighbour_distance,
)
from gnnquant.smoothness.lagrangian import ConstraintReport, LagrangianDriver, Smoothness, measure
from gnnquant.smoothness.propagation import SmoothnessConstraint, SmoothPropagation

__all__ = [
    "ConstraintReport",
    "LagrangianDriver",
    "SmoothPropagation",
    "Smoothness",
    "SmoothnessConstraint",
    "dirichlet_energy",
    "laplacian_quadratic_form",
    "mean_neighbour_distance",
    "measure",
]
