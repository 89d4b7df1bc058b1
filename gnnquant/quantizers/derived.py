"""What follows from a tensor and is worth keeping: found once for each state of the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from torch import Tensor

T = TypeVar("T")


class Derived(Generic[T]):
    """Values by tensor, each kept as long as its tensor lives and does not change."""

    def __init__(self) -> None:
        self._known = WeakTensorKeyDictionary()

    def get(self, tensor: Tensor, find: Callable[[], T], about: Hashable = None) -> T:
        """``find()``, or what it returned for this state of ``tensor`` and the same ``about``.

        ``find`` must not keep ``tensor`` alive in what it returns. Tensors of inference mode have no
        version to tell their states apart: nothing is kept for them.
        """
        if tensor.is_inference():
            return find()
        state = (tensor._version, about)
        known = self._known.get(tensor)  # type: ignore[no-untyped-call]
        if known is None or known[0] != state:
            known = self._known[tensor] = (state, find())
        found: T = known[1]
        return found
