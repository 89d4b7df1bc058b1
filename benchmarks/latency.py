"""Latency and size of a 2-layer GCN: eager PyG, our compiled FP32, INT8, INT4, INT2, in one process.

    python -m benchmarks.latency --dataset PubMed --hidden 256

Weights are random and ranges calibrated: neither latency nor size depends on training. Times are medians
of calls made in turns, float features in, class scores out, the graph prepared by an earlier call.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnquant
from gnnquant.datasets import DATASETS, load_dataset
from gnnquant.timing import interleaved_medians, keep_freed_memory, one_torch_thread

if TYPE_CHECKING:
    from collections.abc import Callable


class GCN(nn.Module):
    """Two GCN layers."""

    def __init__(self, features: int, hidden: int, classes: int) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.conv1 = GCNConv(features, hidden)
        self.conv2 = GCNConv(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Class scores [N, classes]."""
        x = self.conv1(x, edge_index).relu()
        x = F.dropout(x, p=0.5, training=self.training)
        scores: Tensor = self.conv2(x, edge_index)
        return scores


def measure(dataset: str, hidden: int, threads: int, seed: int) -> dict[str, Any]:
    """All rows of the table, with versions and machine."""
    data = load_dataset(dataset)
    torch.manual_seed(seed)
    model = GCN(data.num_features, hidden, int(data.y.max()) + 1).eval()
    inputs = (data.x, data.edge_index)
    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}

    def eager() -> Tensor:
        with torch.inference_mode():
            scores: Tensor = model(*inputs)
            return scores

    calls["eager"] = eager
    rows["eager"] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "state.pt"
        torch.save(model.state_dict(), checkpoint)
        rows["eager"]["bytes"] = checkpoint.stat().st_size
        for bits in (32, 8, 4, 2):
            q = gnnquant.calibrate(gnnquant.convert(model, bits=bits), data)
            start = time.perf_counter()
            compiled = gnnquant.compile(q, threads=threads)
            compile_s = time.perf_counter() - start
            path = Path(folder) / f"{bits}.gnnq"
            compiled.save(path)
            start = time.perf_counter()
            gnnquant.load(path)
            load_ms = 1e3 * (time.perf_counter() - start)
            calls[str(bits)] = lambda compiled=compiled: compiled(*inputs)  # type: ignore[misc]
            rows[str(bits)] = {
                "bytes": path.stat().st_size,
                "compile_s": round(compile_s, 2),
                "load_ms": round(load_ms, 1),
            }
    medians = interleaved_medians(calls)
    for name, row in rows.items():
        row["ms"] = round(medians[name], 3)
        row["vs_eager"] = round(medians["eager"] / medians[name], 2)
        row["vs_fp32"] = round(medians["32"] / medians[name], 2)
    return {
        "dataset": dataset,
        "hidden": hidden,
        "threads": threads,
        "seed": seed,
        "machine": _processor(),
        "versions": {name: version(name) for name in ("torch", "torch_geometric", "apache-tvm")},
        "rows": rows,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags]
    return f"{names[0] if names else platform.machine()} x{len(names)} ({' '.join(vectors)})"


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="PubMed")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="let glibc keep freed memory, which spares eager PyG the page faults of its messages",
    )
    options = parser.parse_args()
    if options.keep_freed_memory:
        keep_freed_memory()
    with one_torch_thread():
        print(json.dumps(measure(options.dataset, options.hidden, options.threads, options.seed), indent=2))


if __name__ == "__main__":
    main()
