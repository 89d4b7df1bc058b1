"""What stays one node in a traced graph: layers, aggregations and the helpers of graph learning.

Passes want to see ``softmax(alpha, index)``, not its eight steps; and the helpers branch on the data
(``if index.numel() > 0``), which is harmless inside of a leaf and fatal when unrolled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch_geometric.nn import Aggregation
from torch_geometric.nn import norm as pyg_norm
from torch_geometric.nn.dense.linear import HeteroDictLinear, HeteroLinear
from torch_geometric.nn.dense.linear import Linear as PyGLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

_PYG_LEAVES: tuple[type[nn.Module], ...] = (
    PyGLinear,
    HeteroLinear,
    HeteroDictLinear,
    Aggregation,
    *(getattr(pyg_norm, name) for name in pyg_norm.__all__),
)


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
    when it is one of PyG's linear layers, norms and aggregations, or when its class says so with
    ``traced_as_leaf = True``. Containers are looked through.
    """
    if isinstance(module, (*_PYG_LEAVES, torch.jit.ScriptModule)) or getattr(module, "traced_as_leaf", False):
        return True
    if "forward" in vars(module):  # replaced on the instance: the user's own code
        return False
    definer = next(c for c in type(module).__mro__ if "forward" in vars(c))
    home = definer.__module__
    return home.startswith("torch.nn.modules.") and home not in (
        "torch.nn.modules.container",
        "torch.nn.modules.module",
    )


def open_modules(root: nn.Module) -> Iterator[nn.Module]:
    """The modules whose code is looked into: all that are neither leaves nor parts of leaves."""
    seen: set[nn.Module] = set()
    waiting = [root]
    while waiting:
        module = waiting.pop()
        if module in seen or (module is not root and is_leaf_module(module)):
            continue
        seen.add(module)
        yield module
        waiting.extend(module.children())
