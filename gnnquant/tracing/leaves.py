"""What stays one node in a traced graph: primitive layers and the helpers of graph learning.

Passes want to see ``softmax(alpha, index)``, not its eight steps; and the helpers branch on the data
(``if index.numel() > 0``), which is harmless inside of a leaf and fatal when unrolled. What is composed
of such primitives (attention pooling, several aggregations at once, most norms) is looked into.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch_geometric.nn import aggr
from torch_geometric.nn import norm as pyg_norm
from torch_geometric.nn.dense.linear import HeteroLinear
from torch_geometric.nn.dense.linear import Linear as PyGLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

_LEAF_FUNCTIONS = {
    "torch_geometric.utils": """
        add_remaining_self_loops add_self_loops coalesce contains_self_loops cumsum degree
        dropout_edge dropout_node dropout_path batched_negative_sampling negative_sampling
        get_laplacian group_argsort group_cat index_sort is_undirected lexsort mask_to_index one_hot
        remove_self_loops scatter scatter_argmax segment segregate_self_loops softmax
        sort_edge_index spmm subgraph to_dense_adj to_dense_batch to_edge_index to_undirected
        unbatch""",
    "torch_geometric.utils.num_nodes": "maybe_num_nodes",
    "torch_geometric.nn.conv.gcn_conv": "gcn_norm",
    "torch_geometric.nn.pool.select.topk": "topk",
}

_LINEARS = (PyGLinear, HeteroLinear)
_AGGREGATIONS = (
    *(aggr.SumAggregation, aggr.MeanAggregation, aggr.MaxAggregation, aggr.MinAggregation),
    *(aggr.MulAggregation, aggr.QuantileAggregation, aggr.SortAggregation),
    # These run over sequences whose length is the largest degree, or differentiate inside of forward.
    *(aggr.LSTMAggregation, aggr.GRUAggregation, aggr.LCMAggregation, aggr.EquilibriumAggregation),
)
_NORMS = (pyg_norm.BatchNorm, pyg_norm.HeteroBatchNorm)
_PYG_LEAVES: frozenset[type] = frozenset({*_LINEARS, *_AGGREGATIONS, *_NORMS})
"""Classes whose ``forward`` is one node."""


def leaf_functions() -> list[Callable[..., Any]]:
    """The functions of PyG that stay one ``call_function`` node, in the installed version."""
    found = []
    for module_name, names in _LEAF_FUNCTIONS.items():
        module = importlib.import_module(module_name)
        found += [getattr(module, name) for name in names.split() if hasattr(module, name)]
    return found


def is_leaf_module(module: nn.Module) -> bool:
    """Whether ``module`` stays one ``call_module`` node.

    It does when its ``forward`` is torch's own (also in a subclass that only changes ``__init__``), or
    that of a primitive layer of PyG, or when its class says so with ``traced_as_leaf = True``. Containers
    are looked through, and so are layers whose weights are computed: parametrised ones, and ones with
    forward hooks.
    """
    if isinstance(module, torch.jit.ScriptModule) or getattr(module, "traced_as_leaf", False):
        return True
    if "forward" in vars(module):  # replaced on the instance: the user's own code
        return False
    definer = next(c for c in type(module).__mro__ if "forward" in vars(c))
    if definer is pyg_norm.InstanceNorm:  # assigns new running statistics, which no node can
        return bool(module.track_running_stats)
    home = definer.__module__
    of_torch = home.startswith("torch.nn.modules.") and home not in (
        "torch.nn.modules.container",
        "torch.nn.modules.module",
    )
    hooked = module._forward_hooks or module._forward_pre_hooks
    return (of_torch or definer in _PYG_LEAVES) and not (hooked or parametrize.is_parametrized(module))


def open_modules(root: nn.Module, whole: Collection[str] = ()) -> Iterator[nn.Module]:
    """The modules whose code is looked into: all that are neither leaves nor parts of leaves.

    Modules called ``whole`` count as leaves.
    """
    seen = {root.get_submodule(name) for name in whole}
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module in seen or (module is not root and is_leaf_module(module)):
            continue
        seen.add(module)
        yield module
        waiting.extend(module.children())
