"""Arrays in the memory of a GPU: torch tensors, of which a call needs addresses and shapes.

torch is never imported: its tensors can only be met in a process that has imported it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """A contiguous torch tensor on a GPU, whose contents nobody looks at here.

    Attributes:
        tensor: The tensor, kept as long as this.
    """

    tensor: Any

    @staticmethod
    def of(tensor: Any) -> DeviceArray:
        """``tensor``, copied on its GPU where it is not contiguous."""
        return DeviceArray(tensor.contiguous())

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extents."""
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def address(self) -> int:
        """Of its first element, on the GPU."""
        return int(self.tensor.data_ptr())

    def numpy(self) -> NDArray[Any]:
        """A copy in the memory of the CPU, after what computes it."""
        array: NDArray[Any] = self.tensor.cpu().numpy()
        return array

    def clone(self) -> DeviceArray:
        """A copy on the same GPU."""
        return DeviceArray(self.tensor.clone())

    def same(self, other: DeviceArray) -> bool:
        """Whether both hold the same, compared on the GPU."""
        return self.shape == other.shape and bool((self.tensor == other.tensor).all())

    def finite(self) -> bool:
        """Whether it holds neither NaN nor infinity, found on the GPU."""
        return bool(self.tensor.isfinite().all())


def empty(shape: Sequence[int], device: str) -> DeviceArray:
    """A new float32 tensor of torch's allocator, not initialized."""
    torch = sys.modules["torch"]
    return DeviceArray(torch.empty(tuple(shape), dtype=torch.float32, device=device))


def current_stream(device: str) -> int:
    """The stream on which torch works now: a ``CUstream``."""
    return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)


def on_host(array: NDArray[Any] | DeviceArray) -> NDArray[Any]:
    """``array`` itself, or a copy of what is on a GPU."""
    return array.numpy() if isinstance(array, DeviceArray) else array
