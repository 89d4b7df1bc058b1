"""What has no place in a compiled model, and why: reasons in place of "there is no rule"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch_geometric import utils
from torch_geometric.nn import aggr
from torch_geometric.nn.pool.select.topk import topk

if TYPE_CHECKING:
    from collections.abc import Callable

    from gnnquant.passes.lowering.program import Program

_SCORES = "which rows remain depends on scores that the model computes; pool with a fixed assignment instead"
_DENSE = (
    "it pads every graph to the largest one, so that two axes depend on the batch; compiled models keep "
    "nodes as rows"
)
_NEW_LISTS = "it makes a new edge list by sorting and merging edges; do this before the model, on its inputs"
_ORDER = "it orders rows by values that the model computes"
_SEQUENCE = "it runs a network along the edges of a node: a sequence whose length depends on the graph"
_RANDOM = "it draws random numbers in eval mode too"
RANDOM_NAMES = (
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like"),
    *("bernoulli", "multinomial", "normal", "uniform", "exponential", "random", "poisson", "gumbel_softmax"),
)
"""Functions that are refused on constants too: their results must not become constants."""

FUNCTION_REASONS: dict[Any, str] = {
    topk: _SCORES,
    utils.to_dense_batch: _DENSE,
    utils.to_dense_adj: _DENSE,
    utils.sort_edge_index: _NEW_LISTS,
    utils.subgraph: _NEW_LISTS,
    utils.negative_sampling: _RANDOM,
    utils.batched_negative_sampling: _RANDOM,
}
NAME_REASONS = {
    "topk": _SCORES,
    "to_sparse": _NEW_LISTS,
    **dict.fromkeys(RANDOM_NAMES, _RANDOM),
    "median": _ORDER,
    "quantile": _ORDER,
    "tolist": "it takes values out of a tensor",
}
MODULE_REASONS: dict[type, str] = {
    aggr.MedianAggregation: _ORDER,
    aggr.QuantileAggregation: _ORDER,
    aggr.SortAggregation: _ORDER,
    aggr.LSTMAggregation: _SEQUENCE,
    aggr.GRUAggregation: _SEQUENCE,
    aggr.LCMAggregation: _SEQUENCE,
    aggr.EquilibriumAggregation: "it minimises an energy by gradient descent inside of the model",
}


def _refusal(why: str) -> Callable[..., Any]:
    def rule(program: Program, *_: Any, **__: Any) -> Any:
        raise program.refuse(why)

    return rule


FUNCTIONS = {function: _refusal(why) for function, why in FUNCTION_REASONS.items()}
NAMES = {name: _refusal(why) for name, why in NAME_REASONS.items()}
MODULES = {cls: _refusal(why) for cls, why in MODULE_REASONS.items()}
