"""The TVM runtime through its C interface: no torch, no compiler, no ``tvm_ffi`` Python package.

``import tvm_ffi`` imports torch wherever torch is installed (1.8 s), so the two shared libraries
that running code needs, ``libtvm_ffi.so`` and ``libtvm_runtime.so``, are opened here with ctypes.
Both are the files that ``import tvm`` itself opens: one process never holds two copies.

The C interface (``tvm/ffi/c_api.h``): a compiled function ``f`` is the exported symbol
``__tvm_ffi_f``, ``int (void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result)``, zero
on success; tensor arguments are ``DLTensor*``. A call through ctypes releases Python's global lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnquant.errors import ArtifactError, BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FFI_MAJOR = 0
"""Major version of the TVM FFI C interface that this file speaks."""

_NONE, _INT, _TENSOR, _RAW_STRING, _MODULE = 0, 1, 7, 8, 73
_TYPE_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}
_CPU = 1
_POOL_ROOM = 16
_KEEP_AFFINITY = -3  # kSpecifyThreadShareAllCore: the given cores, shared by all workers


class Device(ctypes.Structure):
    """``DLDevice``."""

    _fields_ = (("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32))


class DataType(ctypes.Structure):
    """``DLDataType``."""

    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class TensorView(ctypes.Structure):
    """``DLTensor``: shape and address of memory that something else owns."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Value(ctypes.Union):
    _fields_ = (
        ("int64", ctypes.c_int64),
        ("pointer", ctypes.c_void_p),
        ("string", ctypes.c_char_p),
    )


class AnyValue(ctypes.Structure):
    """``TVMFFIAny``."""

    _fields_ = (("type_index", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", _Value))


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _ErrorHead(ctypes.Structure):
    """``TVMFFIObject`` followed by the first fields of ``TVMFFIErrorCell``."""

    _fields_ = (
        ("references", ctypes.c_uint64),
        ("type_index", ctypes.c_int32),
        ("padding", ctypes.c_uint32),
        ("deleter", ctypes.c_void_p),
        ("kind", _Bytes),
        ("message", _Bytes),
    )


class _Version(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("patch", ctypes.c_uint32),
    )


SAFE_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
"""Type of a compiled function."""


def data_type(dtype: str) -> DataType:
    """The ``DLDataType`` of a numpy type name (``"float32"``, ``"uint8"`` ...)."""
    kind = dtype.rstrip("0123456789")
    bits = 8 if kind == "bool" else int(dtype[len(kind) :])
    return DataType(_TYPE_CODES[kind], bits, 1)


def tensor_view(dtype: str, shape: Sequence[int], address: int = 0) -> TensorView:
    """A view of contiguous memory at ``address``, which must outlive it."""
    dims = (ctypes.c_int64 * max(len(shape), 1))(*shape)
    view = TensorView(
        data=address,
        device=Device(_CPU, 0),
        ndim=len(shape),
        dtype=data_type(dtype),
        shape=ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64)),
        strides=None,
        byte_offset=0,
    )
    view.dims = dims  # keeps the shape alive
    return view


def tensor_arguments(views: Sequence[TensorView]) -> ctypes.Array[AnyValue]:
    """The argument array of a call on ``views``, which must outlive it."""
    packed = (AnyValue * max(len(views), 1))()
    for value, view in zip(packed, views, strict=False):
        value.type_index = _TENSOR
        value.value.pointer = ctypes.addressof(view)
    return packed


class TvmRuntime:
    """The opened runtime libraries of this process: use :func:`runtime`."""

    def __init__(self) -> None:
        self.ffi = _open("tvm_ffi", "libtvm_ffi", "apache-tvm-ffi")
        self.core = _open("tvm", "libtvm_runtime", "apache-tvm")
        declare(self.ffi.TVMFFIGetVersion, None, ctypes.POINTER(_Version))
        version = _Version()
        self.ffi.TVMFFIGetVersion(ctypes.byref(version))
        self.version = f"{version.major}.{version.minor}.{version.patch}"
        if version.major != FFI_MAJOR:
            raise BackendError(
                f"the installed TVM FFI {self.version} has another C interface than {FFI_MAJOR}.x: "
                "install the apache-tvm version that gnnquant asks for"
            )
        handle = ctypes.c_void_p
        any_pointer = ctypes.POINTER(AnyValue)
        declare(
            self.ffi.TVMFFIFunctionGetGlobal,
            ctypes.c_int,
            ctypes.POINTER(_Bytes),
            ctypes.POINTER(handle),
        )
        declare(
            self.ffi.TVMFFIFunctionCall,
            ctypes.c_int,
            handle,
            any_pointer,
            ctypes.c_int32,
            any_pointer,
        )
        declare(self.ffi.TVMFFIErrorMoveFromRaised, None, ctypes.POINTER(handle))
        declare(self.ffi.TVMFFIObjectDecRef, ctypes.c_int, handle)

    def call_global(self, name: str, *arguments: int | str | AnyValue) -> AnyValue:
        """Call the registered function ``name`` with integers, strings and what other calls returned."""
        raw = name.encode()
        handle = ctypes.c_void_p()
        key = _Bytes(ctypes.cast(ctypes.c_char_p(raw), ctypes.c_void_p), len(raw))
        self.check(self.ffi.TVMFFIFunctionGetGlobal(ctypes.byref(key), ctypes.byref(handle)))
        if not handle:
            raise BackendError(f"the installed TVM runtime has no function {name!r}")
        packed = (AnyValue * max(len(arguments), 1))()
        for position, argument in enumerate(arguments):
            slot = packed[position]
            if isinstance(argument, AnyValue):
                packed[position] = argument
            elif isinstance(argument, str):
                slot.type_index, slot.value.string = _RAW_STRING, argument.encode()
            else:
                slot.type_index, slot.value.int64 = _INT, argument
        result = AnyValue()
        try:
            self.check(self.ffi.TVMFFIFunctionCall(handle, packed, len(arguments), ctypes.byref(result)))
        finally:
            self.ffi.TVMFFIObjectDecRef(handle)
        return result

    def check(self, status: int, what: str = "") -> None:
        """Raise ``BackendError`` with TVM's message where ``status`` is not zero."""
        if status == 0:
            return
        error = ctypes.c_void_p()
        self.ffi.TVMFFIErrorMoveFromRaised(ctypes.byref(error))
        message = "unknown error"
        if error.value:
            head = _ErrorHead.from_address(error.value)
            message = ctypes.string_at(head.message.data, head.message.size).decode(errors="replace")
            self.ffi.TVMFFIObjectDecRef(error)
        raise BackendError(f"TVM: {what + ': ' if what else ''}{message.strip()}")

    def load_library(self, path: str) -> ctypes.CDLL:
        """Open a compiled library. It stays open for as long as the process lives.

        TVM opens it first, which fills in the library's pointers to the runtime.
        """
        try:
            module = self.call_global("ffi.ModuleLoadFromFile", path)
            library = ctypes.CDLL(path)  # the same mapping: for direct access to symbols
        except (BackendError, OSError) as error:
            raise ArtifactError(f"the compiled code cannot be loaded: {error}") from error
        if module.type_index != _MODULE:
            raise ArtifactError("the compiled code cannot be loaded: it is not a TVM module")
        return library


def find_function(library: ctypes.CDLL, name: str) -> Callable[..., int] | None:
    """The compiled function ``name`` (a :data:`SAFE_CALL`), or None."""
    try:
        symbol = getattr(library, f"__tvm_ffi_{name}")
    except AttributeError:
        return None
    address = ctypes.cast(symbol, ctypes.c_void_p).value
    assert address is not None
    return SAFE_CALL(address)


def uses_thread_pool(library: ctypes.CDLL) -> bool:
    """Whether the compiled code starts parallel regions."""
    return hasattr(library, "__TVMBackendParallelLaunch")


def declare(function: Any, result: Any, *arguments: Any) -> None:
    """Set the types of a ctypes function."""
    function.restype = result
    function.argtypes = arguments


_lock = threading.Lock()
_runtime: TvmRuntime | None = None


def runtime() -> TvmRuntime:
    """The TVM runtime of this process, opened by the first call.

    Raises:
        BackendError: It is not installed.
    """
    global _runtime  # noqa: PLW0603
    if _runtime is None:
        with _lock:
            if _runtime is None:
                _runtime = TvmRuntime()
    return _runtime


def _open(package: str, stem: str, distribution: str) -> ctypes.CDLL:
    """Open ``<package>/lib/<stem>.so`` with its symbols visible to libraries opened later."""
    missing = f"the TVM runtime is not installed: run `pip install {distribution}`"
    # The path finder alone looks without importing anything; others know editable installations.
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None:
        with contextlib.suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise BackendError(missing)
    suffix = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
    for folder in folders:
        path = folder / "lib" / (stem + suffix)
        if path.exists():
            try:
                return ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise BackendError(f"{path} cannot be opened: {error}") from error
    raise BackendError(f"{stem}{suffix} is not in {folders[0] / 'lib'}: {missing}")


class _PoolState(threading.local):
    """What this thread's pool was last set to (TVM keeps one pool per calling thread)."""

    process = 0
    threads = 0


_pool = _PoolState()
_process = os.getpid()


def _after_fork() -> None:
    global _process  # noqa: PLW0603
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def use_threads(threads: int) -> None:
    """Make parallel regions that this thread starts use ``threads`` threads, at most one per core.

    Workers and the calling thread keep the cores that the process is allowed to run on, where TVM by itself
    would bind them to the first cores of the machine. A pool cannot grow once it exists, so it is made with
    room for this machine's cores, if they are not very many.
    """
    forked = _pool.process not in (0, _process)
    if _pool.threads == threads and (not forked or threads == 1):
        return
    if forked:
        raise BackendError(
            "this process was forked after the model ran with several threads, and threads do not "
            "survive a fork: start it with multiprocessing's 'spawn', or compile with threads=1"
        )
    tvm = runtime()
    cores = _allowed_cores()
    with _lock:
        if _pool.process == 0:
            _limit_new_pools(tvm, min(len(cores), max(threads, _POOL_ROOM)))
            tvm.call_global("runtime.NumThreads")  # makes this thread's pool
        _configure(tvm, threads, cores)
    _pool.process, _pool.threads = _process, threads


def _configure(tvm: TvmRuntime, threads: int, cores: list[int]) -> None:
    """``runtime.config_threadpool(mode, threads, cores)``: for this thread's pool.

    It also allows as many threads as there are ``cores`` in every pool of the process; while TVM allows
    only one (its default on two cores), it runs parallel regions serially.
    """
    strings = tvm.call_global("ffi.Array", *(str(core) for core in cores))
    try:
        tvm.call_global("runtime.config_threadpool", _KEEP_AFFINITY, threads, strings)
    finally:
        tvm.ffi.TVMFFIObjectDecRef(strings.value.pointer)


def _limit_new_pools(tvm: TvmRuntime, workers: int) -> None:
    """Set how many workers a new pool has: half the cores by default; ``_configure`` sets it again."""
    try:
        function = tvm.core["_ZN3tvm7runtime9threading17SetMaxConcurrencyEi"]
    except AttributeError:  # then a new pool may have fewer or more workers than are useful
        return
    declare(function, None, ctypes.c_int)
    function(workers)


def _allowed_cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:
        return list(range(os.cpu_count() or 1))
