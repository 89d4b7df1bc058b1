"""Kernels for instructions that few machines have: with each replaced by what it means, and as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gnnquant.backends.tvm import build, emit, lookups, targets, tiles
from gnnquant.backends.tvm import compile as compiler
from gnnquant.backends.tvm.emit import cast, const, maximum, minimum, reinterpret, splat
from gnnquant.integer_graph import pack_codes
from gnnquant.runtime import host
from tests.backends.tvm import graphs
from tests.backends.tvm.driver import Library
from tests.backends.tvm.models import SIZES, graph_of
from tests.backends.tvm.oracle import Oracle

if TYPE_CHECKING:
    from pathlib import Path

    from gnnquant.integer_graph import IntegerGraph

TARGETS = {
    "skylake-avx512": "",
    "znver4": "vpdpbusd.512",
    "alderlake": "vpdpbusd.256",
    "sapphirerapids": "tdpbusd",
}
"""By LLVM name of a processor: the product of four bytes that it has."""
WORDS, BYTES, QUADS = "pmaddw.d.512", "pmaddubs.w.512", "vpdpbusd"
LOOKUP = "permvar.qi.512"


def part(x: Any, index: int, bits: int, lanes: int, *, signed: bool) -> Any:
    """Part ``index`` of ``bits`` of every int32."""
    high = emit.shift_left(x, 32 - bits * (index + 1), "int32", lanes)
    if signed:
        return emit.shift_right(high, 32 - bits, "int32", lanes)
    high = emit.shift_right(reinterpret(high, "uint32", lanes), 32 - bits, "uint32", lanes)
    return reinterpret(high, "int32", lanes)


def words(x: Any, y: Any) -> Any:
    """Intel's manual, VPMADDWD: sums of two products of signed words."""
    x, y = (reinterpret(v, "int32", 16) for v in (x, y))
    products = [part(x, i, 16, 16, signed=True) * part(y, i, 16, 16, signed=True) for i in range(2)]
    return products[0] + products[1]


def bytes_(x: Any, y: Any) -> Any:
    """VPMADDUBSW: sums of two products of an unsigned and a signed byte, saturated."""
    x, y = (cast(reinterpret(v, "int16", 32), "int32", 32) for v in (x, y))
    products = [part(x, i, 8, 32, signed=False) * part(y, i, 8, 32, signed=True) for i in range(2)]
    limits = [splat(const(limit), 32) for limit in (2**15 - 1, -(2**15))]
    return cast(maximum(minimum(products[0] + products[1], limits[0]), limits[1]), "int16", 32)


def quads(total: Any, x: Any, y: Any, lanes: int) -> Any:
    """VPDPBUSD: an int32 and four products of an unsigned and a signed byte, modulo 2^32."""
    x, y = (emit.bind(reinterpret(v, "int32", lanes)) for v in (x, y))
    for i in range(4):
        total = total + part(x, i, 8, lanes, signed=False) * part(y, i, 8, lanes, signed=True)
    return total


def rounded(value: Any, _: Any, mask: Any, rounding: Any) -> Any:
    """VCVTPS2DQ of numbers that int32 has, in all lanes: as the processor is set, to the nearest, or down."""
    assert int(mask) == -1
    return cast(emit.unary({4: "llvm.rint", 9: "llvm.floor"}[int(rounding)], value, 16), "int32", 16)


def packed(x: Any, y: Any, low: int, high: int, dtype: str) -> Any:
    """VPACKSSDW and VPACKUSWB: saturated to half the width, within parts of 128 bits."""
    lanes, kind = (16, "int32") if dtype == "int16" else (32, "int16")
    limits = [splat(const(limit, kind), lanes) for limit in (high, low)]
    x, y = (cast(maximum(minimum(v, limits[0]), limits[1]), dtype, lanes) for v in (x, y))
    run = lanes // 4
    order = [side * lanes + part * run + i for part in range(4) for side in (0, 1) for i in range(run)]
    return emit.shuffle([emit.bind(x), emit.bind(y)], order)


def compressed(x: Any, rest: Any, mask: Any) -> Any:
    """VPCOMPRESSB: the bytes that the mask picks, side by side at the front of ``rest``."""
    bytes_of = emit.T.alloc_buffer((65,), "uint8")
    count = emit.T.alloc_buffer((1,), "int32")
    emit.T.buffer_store(count, const(0), [0])
    emit.T.buffer_store(bytes_of, rest, [emit.span(0, 64)])
    ones = emit.bind(emit.choose(mask, splat(const(1), 64), splat(const(0), 64)))
    x = emit.bind(x)
    for i in range(64):
        # what is not picked is overwritten by the next one, or restored
        place = emit.bind(count[0])
        old = emit.bind(bytes_of[place])
        picked = emit.bind(emit.shuffle([ones], [i]))
        emit.T.buffer_store(bytes_of, emit.choose(picked > const(0), emit.shuffle([x], [i]), old), [place])
        emit.T.buffer_store(count, place + picked, [0])
    return bytes_of[emit.span(0, 64)]


def looked_up(line: Any, index: Any) -> Any:
    """VPERMB: bytes of a vector, each chosen by the lower six bits of one of another."""
    bytes_of, chosen = (emit.T.alloc_buffer((64,), "uint8") for _ in range(2))
    emit.T.buffer_store(bytes_of, line, [emit.span(0, 64)])
    index = emit.bind(index)
    for i in range(64):
        place = emit.bind(cast(emit.shuffle([index], [i]), "int32") & const(63))
        emit.T.buffer_store(chosen, bytes_of[place], [i])
    return chosen[emit.span(0, 64)]


MEANINGS = {
    LOOKUP: looked_up,
    "mask.compress.v64i8": compressed,
    WORDS: words,
    BYTES: bytes_,
    "mask.cvtps2dq.512": rounded,
    "packssdw.512": lambda x, y: packed(x, y, -(2**15), 2**15 - 1, "int16"),
    "packuswb.512": lambda x, y: packed(x, y, 0, 255, "uint8"),
}
"""By name: instructions of AVX-512."""


class Tiles:
    """Intel's manual, AMX: eight registers of 16 rows of 16 int32, or of 64 bytes."""

    def __init__(self, found: set[str]) -> None:
        self.found = found
        self.words: Any = None

    def __call__(self, name: str, *arguments: Any) -> None:
        short = name.removeprefix("llvm.x86.")
        self.found.add(short)
        if short == "ldtilecfg":
            self.words = emit.T.alloc_buffer((8 * 16, 16), "int32")
        elif short == "tdpbusd":
            self._products(*(16 * int(argument) for argument in arguments))
        elif short != "tilerelease":
            self._rows(short, 16 * int(arguments[0]), *arguments[1:])

    def _rows(self, name: str, first: int, address: Any = None, stride: Any = None) -> None:
        with emit.T.serial(16) as row:
            mine = [first + row, emit.span(0, 16)]
            if name == "tilezero":
                emit.T.buffer_store(self.words, splat(const(0), 16), mine)
                return
            (element,) = address.args
            count = 64 if element.source.dtype == "uint8" else 16
            place = element.indices[-1] + row * (int(stride) * count // 64)
            there = [*element.indices[:-1], emit.span(place, count)]
            if name == "tileloadd64":
                value = reinterpret(element.source[tuple(there)], "int32", 16)
                emit.T.buffer_store(self.words, value, mine)
            else:
                emit.T.buffer_store(element.source, self.words[mine[0], mine[1]], there)

    def _products(self, total: int, x: int, y: int) -> None:
        with emit.T.serial(16) as row, emit.T.serial(16) as k:
            sums = self.words[total + row, emit.span(0, 16)]
            four = quads(sums, splat(self.words[x + row, k], 16), self.words[y + k, emit.span(0, 16)], 16)
            emit.T.buffer_store(self.words, four, [total + row, emit.span(0, 16)])


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Compiles for this machine what is meant for another; the names of replaced instructions."""
    found: set[str] = set()
    real = emit.T.call_llvm_pure_intrin

    def call(dtype: str, name: str, *arguments: Any) -> Any:
        short = name.removeprefix("llvm.x86.avx512.")
        if short == name:
            return real(dtype, name, *arguments)
        found.add(short)
        if short.startswith(QUADS):
            return quads(*arguments, int(short[-3:]) // 32)
        return MEANINGS[short](*arguments)

    describe = targets.describe

    def as_if(resolved: dict[str, Any]) -> Any:
        _, needs = describe(targets.resolve_target("native"))
        return describe(resolved)[0], needs

    built = compiler.build_library
    monkeypatch.setattr(emit.T, "call_llvm_pure_intrin", call)
    monkeypatch.setattr(tiles, "effect", Tiles(found))
    monkeypatch.setattr(targets, "describe", as_if)
    monkeypatch.setattr(
        compiler, "build_library", lambda functions, _: built(functions, targets.resolve_target("native"))
    )
    return found


def target_of(mcpu: str) -> dict[str, str]:
    return {"kind": "llvm", "mcpu": mcpu}


def check(graph: IntegerGraph, mcpu: str, sizes: Any) -> None:
    library = Library(build(graph, target=target_of(mcpu)))
    for nodes, edges in sizes:
        check_call(graph, library, graphs.values(graph, nodes, edges))


def check_call(graph: IntegerGraph, library: Library, inputs: dict[str, Any]) -> None:
    oracle = Oracle(graph, inputs)
    for value, expected in zip(library.run(inputs), oracle.outputs(), strict=True):
        np.testing.assert_array_equal(value, expected, strict=True)


def disassembled(graph: IntegerGraph, mcpu: str, folder: Path) -> str:
    library = folder / "model.so"
    library.write_bytes(build(graph, target=target_of(mcpu)).library)
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


CASES = [
    *((mcpu, name) for mcpu in TARGETS for name in ("gcn-sparse-8", "gcn-2")),
    ("znver4", "gatv2-8"),
    *(("sapphirerapids", name) for name in ("products-8", "gat-4", "edges-8")),
]


@pytest.mark.parametrize(("mcpu", "name"), CASES)
def test_models_equal_the_oracle(used: set[str], mcpu: str, name: str) -> None:
    check(graph_of(name), mcpu, SIZES[1:])
    if TARGETS[mcpu]:
        assert TARGETS[mcpu] in used
    else:
        assert {WORDS, BYTES} & used


@pytest.mark.parametrize(("mcpu", "name"), CASES)
def test_the_instructions_themselves_do_too(mcpu: str, name: str) -> None:
    lacking = host.missing_requirements(targets.describe(targets.resolve_target(target_of(mcpu)))[1])
    if lacking:
        pytest.skip(f"this machine lacks {', '.join(lacking)}: only what they mean is tested")
    check(graph_of(name), mcpu, SIZES[1:])


@pytest.mark.parametrize(("bits", "weighted"), [(8, False), (8, True), (4, True)])
def test_four_edges_at_a_time(used: set[str], bits: int, weighted: bool) -> None:
    """Wide rows, whose edges are summed by the instruction; degrees of all remainders, few and many."""
    sizes = [(40, 10), (40, 300), (40, 2600)]
    check(graphs.gcn(bits, features=20, hidden=256, weighted=weighted), "znver4", sizes)
    assert "vpdpbusd.512" in used


def test_products_are_looked_up(used: set[str]) -> None:
    graph = graphs.lookups(((48, 130), (12, 33), (64, 40)))
    check(graph, "znver4", SIZES[1:])
    assert LOOKUP in used
    used.clear()
    # tiles are faster still
    check(graph, "sapphirerapids", SIZES[-1:])
    assert LOOKUP not in used


@pytest.mark.parametrize("zero2", [0, 3, 4])
def test_sums_that_are_looked_up_fit(zero2: int) -> None:
    known = lookups.table(zero2)
    codes = [[three >> shift & 3 for shift in (0, 2, 4)] for three in range(64)]
    for row, column in ((0, 63), (27, 45), (63, 0), (63, 63), (39, 52)):
        integers = [2 * v - zero2 if zero2 % 2 else v - zero2 // 2 for v in codes[column]]
        assert known.sums[row, column] == sum(u * w for u, w in zip(codes[row], integers, strict=True))
    assert known.sums.min() + known.bias >= 0
    assert lookups.FOUR <= known.few <= 255 // (known.sums.max() + known.bias)
    assert known.most_inputs // 3 * abs(known.sums).max() < 2**15


def test_largest_sums_are_exact() -> None:
    """All codes the largest, in all rows or few; as many inputs as sums of 16 bits allow, and one more."""
    most = lookups.table(3).most_inputs
    for inputs in (most, most + 1):
        m = graphs.Maker(7)
        x = m.input("x", inputs)
        graph = m.finish(m.gemm(m.quantize(x, 2, 0), 96, 2))
        codes = np.full((inputs, 96), 3, dtype=np.uint8)
        codes[:, ::2] = 0
        weight = graph.weights["w0"]
        graph.weights["w0"] = replace(weight, data=pack_codes(codes, 2))
        library = Library(build(graph))
        ones = np.ones((9, inputs), dtype=np.float32)
        check_call(graph, library, {"x": ones})
        ones[1:] = 0
        check_call(graph, library, {"x": ones})


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("bits", [4, 2])
def test_zeros_are_skipped(bits: int, native: bool, request: pytest.FixtureRequest) -> None:
    """Rows without codes, with one, with a few more than half of 64, and with all; the last part is short."""
    graph = graphs.rare(bits)
    if native:
        library = Library(build(graph))
    else:
        replaced = request.getfixturevalue("used")
        library = Library(build(graph, target=target_of("znver4")))
        assert "mask.compress.v64i8" in replaced
    inputs = graphs.values(graph, 40, 100)
    rng = np.random.default_rng(3)
    x = np.zeros_like(inputs["x"])
    # many columns of a row, among few of the rows that are computed together
    for row, many in zip((1, 9, 10, 17, 25, 26, 39), (1, 33, 34, 300, 64, 65, 300), strict=True):
        x[row, rng.permutation(300)[:many]] = rng.random(many) ** 2
    x[39] = 1
    x[30, 149] = x[31, 63] = x[32, 64] = 5
    inputs["x"] = x
    check_call(graph, library, inputs)
    # as many that are not 0 as make up for those that are
    inputs["x"] = rng.random(x.shape, dtype=np.float32) - np.float32(0.6)
    check_call(graph, library, inputs)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (binutils) to look at code with")
@pytest.mark.parametrize(
    ("mcpu", "instruction"),
    [
        ("skylake-avx512", r"vpmaddwd\s.*%zmm"),
        ("znver4", r"vpdpbusd\s.*%zmm"),
        ("alderlake", r"vpdpbusd\s.*%ymm"),
        ("sapphirerapids", r"tdpbusd\s.*%tmm"),
    ],
)
def test_instructions_are_used(mcpu: str, instruction: str, tmp_path: Path) -> None:
    """What LLVM makes of a model for the processor itself, which need not be this one."""
    code = disassembled(graphs.gcn(8, features=20, hidden=256), mcpu, tmp_path)
    assert len(re.findall(instruction, code)) > 8


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (binutils) to look at code with")
def test_products_are_looked_up_by_the_instruction(tmp_path: Path) -> None:
    code = disassembled(graph_of("lookups"), "znver4", tmp_path)
    assert len(re.findall(r"vpermb\s.*%zmm", code)) > 100


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump (binutils) to look at code with")
def test_zeros_are_skipped_by_the_instruction(tmp_path: Path) -> None:
    code = disassembled(graphs.gcn(4, signed=False, features=150, hidden=64), "znver4", tmp_path)
    assert len(re.findall(r"vpcompressb\s.*%zmm", code)) > 1
