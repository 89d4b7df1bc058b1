"""All rows of the table: the recipes, and what PyG exports without one."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch_geometric import nn as gnn

from benchmarks.coverage.cases import Case, part
from benchmarks.coverage.convs import CONVS, MORE_CONVS
from benchmarks.coverage.layers import AGGREGATIONS, NORMS, POOLING
from benchmarks.coverage.models import MODELS, MORE_MODELS
from benchmarks.coverage.others import OTHERS
from benchmarks.coverage.published import PUBLISHED
from benchmarks.coverage.user_models import USER_MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = {
    "conv": "Convolutions (`torch_geometric.nn.conv`)",
    "model": "Models (`torch_geometric.nn.models`, and models of several parts)",
    "aggr": "Aggregations (`torch_geometric.nn.aggr`)",
    "norm": "Normalisations (`torch_geometric.nn.norm`)",
    "pool": "Pooling (`torch_geometric.nn.pool`)",
    "other": "Everything else that `torch_geometric.nn` exports",
    "user": "Models as users write them",
    "published": "Models of PyG's published examples, re-stated",
}

CASES: tuple[Case, ...] = (
    *part("conv", CONVS, counted=True),
    *part("conv", MORE_CONVS),
    *part("model", MODELS, counted=True),
    *part("model", MORE_MODELS),
    *part("aggr", AGGREGATIONS),
    *part("norm", NORMS),
    *part("pool", POOLING),
    *part("other", OTHERS),
    *part("user", USER_MODELS, counted=True),
    *part("published", PUBLISHED),
)

QUICK = (
    "conv:GCNConv with weights",
    "conv:SAGEConv max",
    "conv:GATv2Conv",
    "conv:EdgeConv",
    "conv:RGCNConv with bases",
    "conv:GCN2Conv",
    "conv:HeteroConv",
    "model:GIN",
    "model:graph classifier",
    "model:link prediction",
    "model:own MessagePassing",
    "aggr:StdAggregation of graphs",
    "norm:GraphNorm",
    "user:Data as the only argument",
    "user:edge_update and edge output",
    "user:dictionary input and output",
    "published:ppi",
)
"""A row of every sort."""

_BASE = "a base class: layers of one's own are among the models"
_SEARCH = "an index for searches with faiss, not a layer"
_CAPTUM = "a helper that explains models, not a model"
NO_LAYERS = {
    "conv": {"MessagePassing": _BASE},
    "aggr": {"Aggregation": _BASE},
    "norm": {},
    "pool": dict.fromkeys(
        ("KNNIndex", "L2KNNIndex", "MIPSKNNIndex", "ApproxL2KNNIndex", "ApproxMIPSKNNIndex"), _SEARCH
    ),
    "model": dict.fromkeys(("to_captum_model", "to_captum_input", "captum_output_to_dicts"), _CAPTUM),
    "other": {
        "DataParallel": "a wrapper for several GPUs",
        "summary": "prints a description of a model",
        "KGEModel": "a base class",
    },
}
"""Exported names that are no row, and why."""

NO_RECIPE = "no recipe"


@dataclass(frozen=True)
class Absent:
    """An exported name without a row that could be measured.

    Attributes:
        part: Part of the table.
        name: The exported name.
        reason: Why there is no measurement.
    """

    part: str
    name: str
    reason: str

    @property
    def key(self) -> str:
        """Its name in the whole table."""
        return f"{self.part}:{self.name}"


def exported() -> dict[str, Sequence[str]]:
    """What PyG exports, by part of the table."""
    return {
        "conv": gnn.conv.__all__,
        "model": gnn.models.__all__,
        "aggr": gnn.aggr.__all__,
        "norm": gnn.norm.__all__,
        "pool": gnn.pool.__all__,
        "other": [
            *gnn.__all__,
            *gnn.dense.__all__,
            *gnn.unpool.__all__,
            *gnn.attention.__all__,
            *gnn.kge.__all__,
        ],
    }


def absent() -> list[Absent]:
    """Every exported name that no case covers."""
    covered = {(case.part, case.name.split()[0]) for case in CASES}
    return [
        Absent(home, name, NO_LAYERS[home].get(name, NO_RECIPE))
        for home, names in exported().items()
        for name in names
        if (home, name) not in covered
    ]


def find(key: str) -> Case:
    """The case with this name."""
    return next(case for case in CASES if case.key == key)


def select(patterns: Sequence[str], quick: bool = False, counted: bool = False) -> list[Case]:
    """Cases whose name matches one of ``patterns``, globs or parts of names; all where there are none."""
    chosen = [case for case in CASES if (not quick or case.key in QUICK) and (not counted or case.counted)]
    if not patterns:
        return chosen
    lowered = [pattern.lower() for pattern in patterns]
    return [
        case
        for case in chosen
        if any(p in case.key.lower() or fnmatch.fnmatch(case.key.lower(), p) for p in lowered)
    ]
