"""The few functions and modules that tracing itself writes into a graph.

All are importable by name, so a traced graph pickles by reference and other rooms can match on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable


def set_item(value: Tensor, index: Any, source: Any) -> Tensor:
    """``value[index] = source`` as a pure function: returns a changed copy of ``value``."""
    result = value.clone()
    result[index] = source
    return result


def dtype_of(value: Tensor) -> torch.dtype:
    """The dtype that the model read from its inputs (``x.dtype``); not a use of the data."""
    return value.dtype


def device_of(value: Tensor) -> torch.device:
    """The device that the model read from its inputs (``x.device``); not a use of the data."""
    return value.device


def select_mode(train_value: Any, eval_value: Any) -> Any:  # noqa: ARG001 - read from the graph
    """What a model computes in train mode, and what in eval mode, where the two differ.

    A ``TracedModule`` never calls this: it runs the path of its own mode. Who runs the nodes one by one
    gets what eval mode computes.
    """
    return eval_value


def sorted_index(index: Tensor) -> Tensor:
    """``index`` itself; raises ``ValueError`` unless it is sorted, as some aggregations need it."""
    if not bool((index[:-1] <= index[1:]).all()):
        raise ValueError(
            "the index of this aggregation must be sorted; sort the edges by destination node, for "
            "example with data.sort(sort_by_row=False)"
        )
    return index


def largest(index: Tensor) -> Tensor:
    """The largest integer of ``index``; -1 of none, so that ``int(index.max()) + 1`` counts what is there.

    Models guard ``index.max()`` by ``if index.numel() > 0``, and a graph holds the branch of its example.
    """
    return index.max() if index.numel() else index.new_full((), -1)


class TrainingSwitch(nn.Module):
    """Calls ``function`` with this module's ``training`` flag in the place where the model put its own.

    ``F.dropout(x, training=self.training)`` becomes a plain ``nn.Dropout``; this is for every other
    function with such a flag (``dropout_edge``, ``F.rrelu``, ``F.batch_norm`` ...).
    """

    def __init__(self, function: Callable[..., Any], flag: int | str) -> None:
        """``flag``: the position or the name of the argument that carries the training flag."""
        super().__init__()
        self.function = function
        self.flag = flag

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on ``args`` and ``kwargs``, whose flag entry is left out."""
        if isinstance(self.flag, str):
            kwargs[self.flag] = self.training
        else:
            args = (*args[: self.flag], self.training, *args[self.flag :])
        return self.function(*args, **kwargs)

    def extra_repr(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", repr(self.function))


class AutogradCall(nn.Module):
    """One call of a ``torch.autograd.Function``, whose own backward must stay in force.

    Recording what happens inside of ``forward`` would lose a custom backward (a straight-through
    estimator, say) without a word.
    """

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        """``function.apply(*args)``."""
        return self.function.apply(*args)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """The name of the function."""
        return self.function.__name__
