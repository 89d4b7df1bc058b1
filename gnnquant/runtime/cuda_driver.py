"""NVIDIA's driver API through ctypes: memory, modules and launches on one GPU.

Nothing is loaded before :func:`open_device`; machines without a GPU can import this.
"""

from __future__ import annotations

import ctypes
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gnnquant.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

LIBRARY = "libcuda.so.1"
"""Comes with NVIDIA's driver."""
LEAST = (8, 0)
"""Lowest compute capability that there is code for."""
OUT_OF_MEMORY = 2
DEFAULT_STREAM = 0
NO_TIMING = 2
"""``CU_EVENT_DISABLE_TIMING``."""
MAPPED = 2
"""``CU_MEMHOSTALLOC_DEVICEMAP``."""
CAPABILITY = (75, 76)
"""``CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR`` and ``..._MINOR``."""
_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_ADDRESS = ctypes.c_uint64  # CUdeviceptr
_UNSIGNED = ctypes.c_uint
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (_UNSIGNED,),
    "cuGetErrorName": (_INT, _POINTER),
    "cuGetErrorString": (_INT, _POINTER),
    "cuDeviceGetCount": (_POINTER,),
    "cuDeviceGet": (_POINTER, _INT),
    "cuDeviceGetAttribute": (_POINTER, _INT, _INT),
    "cuDevicePrimaryCtxRetain": (_POINTER, _INT),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (_POINTER,),
    "cuMemAlloc_v2": (_POINTER, _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (_POINTER, _SIZE, _UNSIGNED),
    "cuMemHostGetDevicePointer_v2": (_POINTER, _POINTER, _UNSIGNED),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _ADDRESS, _SIZE, _POINTER),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamWaitEvent": (_POINTER, _POINTER, _UNSIGNED),
    "cuEventCreate": (_POINTER, _UNSIGNED),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventSynchronize": (_POINTER,),
    "cuEventDestroy_v2": (_POINTER,),
    "cuModuleLoadData": (_POINTER, _POINTER),
    "cuModuleUnload": (_POINTER,),
    "cuModuleGetFunction": (_POINTER, _POINTER, ctypes.c_char_p),
    "cuLaunchKernel": (_POINTER, *[_UNSIGNED] * 7, _POINTER, _POINTER, _POINTER),
}
"""Argument types; every function returns a ``CUresult``, 0 for success."""


def lacking() -> str:
    """What this machine lacks to run code for GPUs, in words; "" if nothing."""
    wanted = f"an NVIDIA GPU of compute capability {LEAST[0]}.{LEAST[1]} or newer"
    if struct.calcsize("P") != 8:
        return f"{wanted} and a 64-bit process"
    try:
        capability = Driver().capability()
    except BackendError as error:
        return f"{wanted} ({error})"
    if capability < LEAST:
        return f"{wanted} (this one has {capability[0]}.{capability[1]})"
    return ""


class Driver:
    """The driver, with the first GPU that it shows (``CUDA_VISIBLE_DEVICES`` chooses).

    Raises:
        BackendError: There is no driver, no GPU, or it does not answer.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise BackendError(f"NVIDIA's driver is not installed here: {error}") from error
        try:
            for name, types in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = _INT, types
        except AttributeError as error:
            raise BackendError(f"NVIDIA's driver is too old: {error}") from error
        self.call("cuInit", 0)
        count = _INT()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if count.value < 1:
            raise BackendError("NVIDIA's driver shows no GPU")
        device = _INT()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.device = device.value

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function.

        Raises:
            BackendError: It failed; with the driver's own words.
        """
        self.check(name, self.function(name)(*arguments))

    def function(self, name: str) -> Callable[..., int]:
        """A function of the driver."""
        found: Callable[..., int] = getattr(self._library, name)
        return found

    def check(self, name: str, status: int) -> None:
        """Raise ``BackendError``, in the driver's words, where a function returned an error."""
        if status:
            words = self._words(status)
            if status == OUT_OF_MEMORY:
                words += "; the memory of the GPU is full: use smaller graphs, or free what else is there"
            raise BackendError(f"cuda: {name} failed: {words}")

    def capability(self) -> tuple[int, int]:
        """Compute capability of the GPU, major and minor."""
        found = []
        for attribute in CAPABILITY:
            value = _INT()
            self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self.device)
            found.append(value.value)
        return found[0], found[1]

    def _words(self, status: int) -> str:
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            getattr(self._library, name)(status, ctypes.byref(text))
            words.append((text.value or b"?").decode(errors="replace"))
        return f"{words[0]} ({status}, {words[1]})"


class Gpu:
    """The primary context of a GPU, which torch and other libraries share; kept until the process ends.

    Every method may be called from any thread, but not in a process that was forked after the first call.
    """

    def __init__(self) -> None:
        self._driver = Driver()
        context = _POINTER()
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._driver.device)
        self._context = context
        self._start = self._driver.function("cuLaunchKernel")

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context that of this thread, and put back what was there."""
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes, aligned to 256; of a few where ``size`` is 0."""
        address = _ADDRESS()
        with self.current():
            self._driver.call("cuMemAlloc_v2", ctypes.byref(address), max(size, 256))
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        with self.current():
            self._driver.call("cuMemFree_v2", address)

    def upload(self, address: int, array: NDArray[Any], stream: int = DEFAULT_STREAM) -> None:
        """Copy a contiguous array to the GPU, in the order of ``stream``; the array may change afterwards."""
        if array.nbytes:
            with self.current():
                self._driver.call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, stream)

    def download(self, array: NDArray[Any], address: int, stream: int = DEFAULT_STREAM) -> None:
        """Copy from the GPU to a contiguous array, which is complete after :meth:`synchronize`."""
        if array.nbytes:
            with self.current():
                self._driver.call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, stream)

    def shared_memory(self, size: int) -> tuple[int, int]:
        """Memory of the CPU that kernels may write: its address here, and on the GPU."""
        here, there = _POINTER(), _ADDRESS()
        with self.current():
            self._driver.call("cuMemHostAlloc", ctypes.byref(here), size, MAPPED)
            self._driver.call("cuMemHostGetDevicePointer_v2", ctypes.byref(there), here, 0)
        return here.value or 0, there.value

    def free_shared(self, address: int) -> None:
        """Give back what :meth:`shared_memory` gave, by its address here."""
        with self.current():
            self._driver.call("cuMemFreeHost", address)

    def event(self) -> int:
        """A new event."""
        event = _POINTER()
        with self.current():
            self._driver.call("cuEventCreate", ctypes.byref(event), NO_TIMING)
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        """Free an event."""
        with self.current():
            self._driver.call("cuEventDestroy_v2", event)

    def record(self, event: int, stream: int) -> None:
        """Let ``event`` stand for all that ``stream`` has been given."""
        self._driver.call("cuEventRecord", event, stream)

    def wait(self, event: int) -> None:
        """Wait for what ``event`` stands for.

        Raises:
            BackendError: A kernel failed.
        """
        self._driver.call("cuEventSynchronize", event)

    def follow(self, stream: int, event: int) -> None:
        """Let what ``stream`` is given from now on wait for what ``event`` stands for."""
        self._driver.call("cuStreamWaitEvent", stream, event, 0)

    def load(self, image: bytes) -> int:
        """A module from a fatbin.

        Raises:
            BackendError: The driver cannot read it: it may be too old.
        """
        module = _POINTER()
        with self.current():
            self._driver.call("cuModuleLoadData", ctypes.byref(module), image)
        return module.value or 0

    def unload(self, module: int) -> None:
        """Free a module."""
        with self.current():
            self._driver.call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        """A kernel of a module."""
        function = _POINTER()
        with self.current():
            self._driver.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function.value or 0

    def launch(self, function: int, blocks: int, threads: int, pointers: int, stream: int) -> None:
        """Start a kernel; ``pointers`` is the address of an array of pointers to its arguments.

        Launches on a stream run in order. A kernel that fails shows where it is waited for.
        """
        status = self._start(function, blocks, 1, 1, threads, 1, 1, 0, stream, pointers, None)
        self._driver.check("cuLaunchKernel", status)

    def synchronize(self, stream: int = DEFAULT_STREAM) -> None:
        """Wait for all that ``stream`` has been given.

        Raises:
            BackendError: A kernel failed.
        """
        with self.current():
            self._driver.call("cuStreamSynchronize", stream)
