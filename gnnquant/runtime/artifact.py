"""The ``.gnnq`` file: a compiled model as one file that needs neither torch nor the compiler.

All numbers are little-endian. The file is::

    offset  bytes
         0      4  magic "GNNQ"
         4      4  format version, uint32 (this is version 6)
         8      8  length of the whole file, uint64
        16      4  length H of the header, uint32
        20      4  zero
        24     32  SHA-256 of bytes 0 .. 23 followed by the header
        56      H  header: JSON, UTF-8
    56 + H         sections, one after another in the order of the header's table, to the end

The header is an object with two members. ``metadata`` describes the model::

    gnnquant, tvm     versions that made it
    target            what the code needs: kind, triple, mcpu, machine ("x86_64"), system ("linux"),
                      pointer_bits, byte_order and features (LLVM names, "avx2"); of a GPU kind "cuda",
                      machine "nvidia-gpu" and architectures
    inputs            all tensors and numbers of a call: name, kind and shape of a row
    outputs           for each output: name, dtype, shape (first the name of what its rows are)
    threads           that the kernels were compiled for
    bits, sites       the model's bit width, and that of each quantized site by its name

and whatever else the compiler noted. ``sections`` is the table: ``name``, ``kind``, ``offset``
(from the start of the file), ``length`` (stored), ``size`` (unpacked), ``encoding`` (``"zlib"`` or
``"raw"``) and ``sha256`` (hexadecimal, of the stored bytes) each. The kinds, in file order:

``plan``
    One section, JSON, ``gnnquant.runtime.plan.Plan``: which exported function to call on which
    buffers. A loader provides the buffers; each must be contiguous and 64-byte aligned.
``constant``
    One for each constant buffer of the plan, with ``dtype`` (numpy name) and ``shape``: row-major
    values. Packed weights are uint8, exactly as the kernels read them.
``library``
    One section: a shared library. A kernel ``f`` is the symbol ``__tvm_ffi_f``, to be called as
    ``int f(void* null, const TVMFFIAny* args, int32_t count, TVMFFIAny* result)`` with
    ``DLTensor*`` arguments (TVM's C interface, ``tvm/ffi/c_api.h``). A variable
    ``__TVMBackendParallelLaunch``, where there is one, must first be set to the function
    ``TVMBackendParallelLaunch`` of the TVM runtime. ``graph_count`` and ``graph_fill`` make the
    graph buffers: see ``gnnquant.backends.tvm.prepare``. Of the kind ``"cuda"`` it is a fatbin, whose
    kernels are launched as ``gnnquant.runtime.cuda`` says.

An artifact is native code: whoever wrote the file decides what loading it does. The checksums find
damage, not malice.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import struct
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnquant.errors import ArtifactError, BackendError
from gnnquant.folders import write_whole
from gnnquant.runtime.cuda import GPU, CudaExecutor
from gnnquant.runtime.executor import DTYPES, TvmExecutor, check_plan
from gnnquant.runtime.host import missing_requirements
from gnnquant.runtime.model import CompiledModel
from gnnquant.runtime.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gnnquant.runtime.indexing import IndexResults
    from gnnquant.runtime.model import Executor

MAGIC = b"GNNQ"
FORMAT_VERSION = 6
_PREFIX = struct.Struct("<4sIQI4x")
_DIGEST = 32
_START = _PREFIX.size + _DIGEST
_MAX_RATIO = 1032
"""zlib cannot expand more than this: a larger recorded size is a lie."""


@dataclass(frozen=True)
class ArtifactPayload:
    """What an artifact stores.

    Attributes:
        plan: Which kernels to call on which buffers.
        constants: Arrays of the plan's constant buffers.
        library: The shared library's bytes.
        metadata: JSON-able facts; ``"target"`` must be ``gnnquant.runtime.host.requirements(...)``,
            versions, ``"bits"`` and ``"sites"`` should be there (see the top of this module).
            Inputs, outputs and threads are added from the plan.
    """

    plan: Plan
    constants: Mapping[str, NDArray[Any]]
    library: bytes
    metadata: dict[str, Any]


def to_bytes(payload: ArtifactPayload) -> bytes:
    """The file's content; equal payloads give equal bytes."""
    stored: list[bytes] = []
    sections: list[dict[str, Any]] = []

    def add(name: str, kind: str, data: bytes, **extra: Any) -> None:
        packed = zlib.compress(data, 9)
        encoding = "zlib" if len(packed) < len(data) else "raw"
        stored.append(packed if encoding == "zlib" else data)
        sections.append(
            {
                "name": name,
                "kind": kind,
                "offset": 0,
                "length": len(stored[-1]),
                "size": len(data),
                "encoding": encoding,
                "sha256": hashlib.sha256(stored[-1]).hexdigest(),
                **extra,
            }
        )

    add("plan", "plan", _dump(payload.plan.to_json()))
    for buffer in payload.plan.buffers:
        if buffer.kind == "constant":
            array = np.asarray(payload.constants[buffer.name])
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            shape = list(array.shape)
            add(buffer.name, "constant", little.tobytes(), dtype=array.dtype.name, shape=shape)
    add("library", "library", payload.library)

    header = {"metadata": describe(payload), "sections": sections}
    # Offsets count the header, whose length depends on how many digits they have: settle both.
    while True:
        raw = _dump(header)
        offset = _START + len(raw)
        for section in sections:
            section["offset"] = offset
            offset += section["length"]
        if len(_dump(header)) == len(raw):
            break
    raw = _dump(header)
    prefix = _PREFIX.pack(MAGIC, FORMAT_VERSION, offset, len(raw))
    return b"".join([prefix, hashlib.sha256(prefix + raw).digest(), raw, *stored])


def describe(payload: ArtifactPayload) -> dict[str, Any]:
    """The metadata as stored: the compiler's with inputs and outputs of the plan."""
    plan = payload.plan
    spaces = {buffer.name: buffer.shape[0] for buffer in plan.buffers if buffer.kind == "output"}
    outputs = [
        {"name": name, "dtype": "float32", "shape": [spaces[name], *shape]}
        for name, shape in zip(plan.outputs, plan.output_shapes, strict=True)
    ]
    inputs = [asdict(item) for item in plan.inputs]
    return {**payload.metadata, "inputs": inputs, "outputs": outputs, "threads": plan.threads}


def from_bytes(data: bytes, where: str = "the artifact", *, check_machine: bool = True) -> ArtifactPayload:
    """Inverse of :func:`to_bytes`. No code is loaded.

    Args:
        data: Content of a file.
        where: Names it in messages.
        check_machine: Whether code for another machine is an error.

    Raises:
        ArtifactError: The content is truncated, altered, malformed, made by a newer gnnquant or for
            another machine.
    """
    header = _read_header(data, where)
    try:
        metadata = header["metadata"]
        lacking = missing_requirements(metadata["target"]) if check_machine else []
        if lacking:
            raise ArtifactError(
                f"{where} was compiled for another machine: it needs {'; '.join(lacking)}. "
                "Compile the model again for this machine"
            )
        payload = _read_sections(data, header, where)
        check_plan(payload.plan, payload.constants)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{where} is malformed: {type(error).__name__}: {error}") from error
    return payload


def _read_header(data: bytes, where: str) -> dict[str, Any]:
    length, total = _read_prefix(data, where)
    if len(data) < min(total, _START + length):
        raise ArtifactError(f"{where} is truncated: it has {len(data)} of {total} bytes")
    raw = data[_START : _START + length]
    digest = hashlib.sha256(data[: _PREFIX.size] + raw).digest()
    if digest != data[_PREFIX.size : _START]:
        raise ArtifactError(f"{where} is altered: the checksum of its header does not match")
    if len(data) < total:
        raise ArtifactError(f"{where} is truncated: it has {len(data)} of {total} bytes")
    if len(data) > total:
        raise ArtifactError(f"{where} is altered: it has {len(data)} bytes instead of {total}")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is malformed: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ArtifactError(f"{where} is malformed: its header is not an object")
    return header


def _read_prefix(data: bytes, where: str) -> tuple[int, int]:
    """Length of the header and of the whole file."""
    if data[:4] != MAGIC[: len(data)] or not data:
        raise ArtifactError(f"{where} is not a gnnquant artifact: it does not start with 'GNNQ'")
    if len(data) < _START:
        raise ArtifactError(f"{where} is truncated: it has only {len(data)} bytes")
    _, version, total, length = _PREFIX.unpack_from(data)
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{where} was made by a newer gnnquant (file format {version}, this one reads "
            f"{FORMAT_VERSION}): upgrade gnnquant"
        )
    if version < FORMAT_VERSION:
        raise ArtifactError(
            f"{where} was made by an older gnnquant (file format {version}, this one reads "
            f"{FORMAT_VERSION}): compile the model again"
        )
    return length, total


def _read_sections(data: bytes, header: dict[str, Any], where: str) -> ArtifactPayload:
    plan: Plan | None = None
    library: bytes | None = None
    constants: dict[str, NDArray[Any]] = {}
    end = len(data) - sum(section["length"] for section in header["sections"])
    for section in header["sections"]:
        if section["length"] < 0 or section["offset"] != end:
            raise ValueError(f"section {section['name']!r} is not where it should be")
        end += section["length"]
        content = _unpack(data[section["offset"] : end], section, where)
        kind = section["kind"]
        if kind == "plan" and plan is None:
            plan = Plan.from_json(json.loads(content))
        elif kind == "library" and library is None:
            library = content
        elif kind == "constant" and section["name"] not in constants:
            constants[section["name"]] = _constant(content, section)
        else:
            raise ValueError(f"section {section['name']!r} of kind {kind!r} is one too many")
    if plan is None or library is None:
        raise ValueError("it has no plan or no library")
    return ArtifactPayload(plan, constants, library, header["metadata"])


def _unpack(stored: bytes, section: dict[str, Any], where: str) -> bytes:
    name, size = section["name"], section["size"]
    if hashlib.sha256(stored).hexdigest() != section["sha256"]:
        raise ArtifactError(f"{where} is altered: the checksum of section {name!r} does not match")
    if section["encoding"] == "raw":
        content = stored
    else:
        if not 0 <= size <= _MAX_RATIO * len(stored):
            raise ValueError(f"section {name!r} cannot have {size} bytes")
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(stored, size + 1)
        except zlib.error as error:
            raise ValueError(f"section {name!r}: {error}") from error
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError(f"section {name!r} does not end where it should")
    if len(content) != size:
        raise ValueError(f"section {name!r} has {len(content)} bytes instead of {size}")
    return content


def _constant(content: bytes, section: dict[str, Any]) -> NDArray[Any]:
    if section["dtype"] not in DTYPES:
        raise ValueError(f"constant {section['name']!r} has the type {section['dtype']!r}")
    dtype = np.dtype(section["dtype"])
    array = np.frombuffer(content, dtype.newbyteorder("<"))
    return array.astype(dtype, copy=False).reshape([int(dim) for dim in section["shape"]])


def write_artifact(path: str | os.PathLike[str], payload: ArtifactPayload) -> None:
    """Write ``payload`` to ``path``; under that name there is the complete file or the old one."""
    write_whole(path, to_bytes(payload))


def load(path: str | os.PathLike[str]) -> CompiledModel:
    """Read a model that ``CompiledModel.save`` wrote.

    Needs numpy and the TVM runtime; neither torch nor the compiler is imported. An artifact is
    native code: load only files whose origin you trust.

    Raises:
        ArtifactError: The file cannot be read, is truncated, altered, made by a newer gnnquant or
            for another machine.
        BackendError: The TVM runtime is not installed.
    """
    where = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactError(f"{where} cannot be read: {error.strerror or error}") from error
    return model_from_payload(from_bytes(data, where), size=len(data))


def load_bytes(data: bytes) -> CompiledModel:
    """As :func:`load`, from the content of a file."""
    return model_from_payload(from_bytes(data), size=len(data))


def model_from_payload(payload: ArtifactPayload, size: int | None = None) -> CompiledModel:
    """A model that runs ``payload``.

    Args:
        payload: Plan, constants and library.
        size: Bytes of its artifact; None: computed.

    Raises:
        ArtifactError: The plan is malformed or the library cannot be loaded.
    """
    lacking = missing_requirements(payload.metadata["target"])
    gpu = GPU if payload.metadata["target"]["kind"] == "cuda" else ""
    executor = ForeignExecutor(lacking, gpu) if lacking else _executor(payload)
    if size is None:
        size = len(to_bytes(payload))
    info = {**describe(payload), "size_bytes": size}
    return CompiledModel(executor, payload.plan, info, payload)


class ForeignExecutor:
    """Stands for code of another machine: it can be saved, and running it is an error."""

    def __init__(self, lacking: list[str], gpu: str) -> None:
        self.gpu = gpu
        what = "; ".join(lacking)
        self._message = (
            f"this model was compiled for another machine: it needs {what}. Save it and load it there"
        )

    def prepare(self, index: IndexResults) -> Any:  # noqa: ARG002
        """Raise ``BackendError``."""
        raise BackendError(self._message)

    def run(self, prepared: Any, inputs: dict[str, Any]) -> list[NDArray[np.float32]]:  # noqa: ARG002
        """Raise ``BackendError``."""
        raise BackendError(self._message)


def _executor(payload: ArtifactPayload) -> Executor:
    if payload.metadata["target"]["kind"] == "cuda":
        return CudaExecutor(payload.plan, payload.constants, payload.library)
    # A file of its own, never used twice: the system's loader knows libraries by path.
    folder = Path(tempfile.mkdtemp(prefix="gnnquant-"))
    try:
        path = folder / f"{secrets.token_hex(16)}.so"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(payload.library)
        return TvmExecutor(payload.plan, payload.constants, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # loaded code stays mapped


def _dump(data: Any) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
