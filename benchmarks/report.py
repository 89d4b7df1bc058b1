"""What every benchmark says of its figures: Markdown tables, plots, the machine, the state of the code."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
VECTORS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX512-VNNI",
    "avx512bw": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
}
"""By the kernel's name of a feature of x86 processors, the wider first: a virtual machine may hide some."""


def grid(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (titles, ["---"] * len(titles), *lines)]


def save_svg(figure: Figure, path: Path) -> None:
    """Write a plot: text stays text, and the same figures give the same file."""
    import matplotlib as mpl

    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "gnnquant", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})


@functools.cache
def code_state(*patterns: str) -> str:
    """A digest of the source files that the patterns (relative to the repository) find.

    Read once per process: as long as it runs, what it has loaded is the code of the first call.

    Raises:
        FileNotFoundError: For a pattern that finds none.
    """
    files: set[Path] = set()
    for pattern in patterns:
        found = set(ROOT.glob(pattern))
        if not found:
            raise FileNotFoundError(f"no file is called {pattern}")
        files |= found
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> str:
    """The processor's name, the number of cores, and the widest vectors of integers that it shows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    vectors = next((f", {name}" for flag, name in VECTORS.items() if flag in flags), "")
    return f"{names[0] if names else platform.machine()} x{os.cpu_count()}{vectors}"
