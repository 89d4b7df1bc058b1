"""The main job: train, convert, fine-tune, compile, check and time one model at several widths."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnnquant.config import FLOAT_BITS
from gnnquant.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from torch import Tensor, nn
    from torch_geometric.data import Data

    from gnnquant.runtime import CompiledModel

MODEL_NAMES = ("gcn", "sage", "gin", "gat", "smp")
"""Models that the demo knows; the classes are in ``demo_models``."""

FLOAT_TOLERANCE = 1e-5
"""Float sums have no order of their own: FP32 is compared within this relative difference."""
FP32_LR = 0.01
COLUMNS = (
    ("bits", 4),
    ("accuracy", 8),
    ("artifact", 10),
    ("latency", 10),
    ("vs eager PyG", 12),
    ("vs own FP32", 11),
    ("equals ref.", 12),
)


@dataclass(frozen=True)
class DemoOptions:
    """What ``gnnquant demo`` is asked for.

    Attributes:
        dataset: A name from ``gnnquant.datasets.DATASETS``.
        data_root: See ``load_dataset``.
        model: A name from ``MODEL_NAMES``.
        bits: Widths to run after 32.
        epochs: Epochs of the FP32 training and of every fine-tuning.
        out: Folder for artifacts, the FP32 checkpoint and ``results.json``.
        seed: Of the initial weights, dropout and fine-tuning.
    """

    dataset: str = "digits"
    data_root: str | None = None
    model: str = "gcn"
    bits: tuple[int, ...] = (8, 4, 2)
    epochs: int = 200
    out: Path = Path("demo-out")
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Attributes:
        bits: Width; 32 is our own compiled float model.
        accuracy: Of the compiled artifact on the test nodes, 0 to 1.
        size_bytes: Of the artifact.
        latency_ms: Median of one call, one thread, float features in, class scores out.
        speedup_vs_eager: Against eager PyG, one thread, measured in turns with it.
        speedup_vs_fp32: Against our own compiled FP32 model, likewise.
        exact: Whether all outputs equal those of ``target="reference"``: in every bit, or for the float
            model within ``FLOAT_TOLERANCE``.
        max_relative_difference: Largest difference from it, relative to the largest output.
    """

    bits: int
    accuracy: float
    size_bytes: int
    latency_ms: float
    speedup_vs_eager: float
    speedup_vs_fp32: float
    exact: bool
    max_relative_difference: float


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Do the main job; prints each row and rewrites ``results.json`` as soon as it is known.

    Args:
        options: What to run.

    Returns:
        The content of ``results.json``.

    Raises:
        GnnQuantError: From any of the steps.
        KeyboardInterrupt: On Ctrl-C; the rows so far are written.
    """
    from gnnquant.timing import keep_freed_memory, one_torch_thread

    console = _console()
    keep_freed_memory()
    # One thread throughout: the sums of training do not depend on the number of cores then, and
    # graphs of this size gain little from more.
    with one_torch_thread():
        return _run(options, console)


def _run(options: DemoOptions, console: Console) -> dict[str, Any]:
    import gnnquant
    from gnnquant.datasets import load_dataset

    data = load_dataset(options.dataset, options.data_root)
    options.out.mkdir(parents=True, exist_ok=True)
    console.print(
        f"{options.dataset}: {data.num_nodes:,} nodes, {data.num_edges:,} edges, "
        f"{data.num_features:,} features; model {options.model}, seed {options.seed}"
    )
    model = trained_model(options, data, console)
    with console.status("FP32: compiling"):
        fp32 = gnnquant.compile(gnnquant.convert(model, bits=FLOAT_BITS), threads=1)
    results: dict[str, Any] = {
        "dataset": options.dataset,
        "model": options.model,
        "seed": options.seed,
        "epochs": options.epochs,
        "rows": [],
    }
    console.print("  ".join(name.rjust(width) for name, width in COLUMNS), style="bold", soft_wrap=True)
    for bits in (FLOAT_BITS, *options.bits):
        row = _row(options, data, model, fp32, bits)
        console.print("  ".join(_cells(row)), highlight=False, soft_wrap=True)
        results["rows"].append(asdict(row))
        write_json(options.out / "results.json", results)
    console.print(f"artifacts and results.json are in {options.out}", soft_wrap=True)
    return results


def trained_model(options: DemoOptions, data: Data, console: Console) -> nn.Module:
    """The FP32 model in eval mode: from the checkpoint of an equal run, or trained now."""
    import torch

    from gnnquant.demo_models import MODELS
    from gnnquant.finetuning import finetune

    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = MODELS[options.model](data.num_features, int(data.y.max()) + 1)
    run = {name: getattr(options, name) for name in ("dataset", "model", "epochs", "seed")}
    checkpoint = options.out / f"{options.dataset}-{options.model}-fp32.pt"
    if checkpoint.is_file():
        try:
            saved = torch.load(checkpoint, weights_only=True)
        except Exception as error:
            # torch.load documents no set of exceptions for a damaged file.
            raise ArtifactError(f"{checkpoint} cannot be read ({type(error).__name__}): delete it") from error
        if saved["run"] == run:
            console.print(f"FP32: loaded from {checkpoint}")
            model.load_state_dict(saved["state"])
            return model.eval()
    result = finetune(model, data, epochs=options.epochs, lr=FP32_LR, seed=options.seed)
    if result.interrupted:
        raise KeyboardInterrupt
    _replace(checkpoint, lambda path: torch.save({"run": run, "state": model.state_dict()}, path))
    return model


def write_json(path: Path, content: object) -> None:
    """Write a JSON file in one step: a reader sees the old or the new content, never half."""
    text = json.dumps(content, indent=2) + "\n"
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _row(options: DemoOptions, data: Data, model: nn.Module, fp32: CompiledModel, bits: int) -> Row:
    """Fine-tune, compile, check, save and time one width."""
    import torch

    import gnnquant
    from gnnquant.timing import interleaved_medians

    q = gnnquant.convert(model, bits=bits)
    compiled = fp32
    if bits != FLOAT_BITS:
        tuned = gnnquant.finetune(q, data, epochs=options.epochs, teacher=model, seed=options.seed)
        if tuned.interrupted:
            raise KeyboardInterrupt
        compiled = gnnquant.compile(q, threads=1)
    reference = gnnquant.compile(q, target="reference")

    kind = "fp32" if bits == FLOAT_BITS else f"int{bits}"
    path = options.out / f"{options.model}-{kind}.gnnq"
    compiled.save(path)
    inputs = (data.x, data.edge_index)
    scores, expected = compiled(*inputs), reference(*inputs)

    def eager() -> Tensor:
        with torch.inference_mode():
            scores: Tensor = model(*inputs)
            return scores

    calls: dict[str, Callable[[], object]] = {"eager": eager, "fp32": lambda: fp32(*inputs)}
    if compiled is not fp32:
        calls["this"] = lambda: compiled(*inputs)
    latency = interleaved_medians(calls)
    this = latency.get("this", latency["fp32"])
    right = scores.argmax(dim=1)[data.test_mask] == data.y[data.test_mask]
    difference = float((scores - expected).abs().max() / expected.abs().max())
    return Row(
        bits=bits,
        accuracy=float(right.float().mean()),
        size_bytes=path.stat().st_size,
        latency_ms=this,
        speedup_vs_eager=latency["eager"] / this,
        speedup_vs_fp32=latency["fp32"] / this,
        exact=difference <= FLOAT_TOLERANCE if bits == FLOAT_BITS else torch.equal(scores, expected),
        max_relative_difference=difference,
    )


def _cells(row: Row) -> list[str]:
    """The row as text, in the widths of ``COLUMNS``."""
    cells = (
        str(row.bits),
        f"{row.accuracy:.1%}",
        f"{row.size_bytes / 1024:,.1f} KiB",
        f"{row.latency_ms:.3f} ms",
        f"{row.speedup_vs_eager:.1f}x",
        f"{row.speedup_vs_fp32:.2f}x",
        "every bit" if row.max_relative_difference == 0 else f"within {row.max_relative_difference:.0e}",
    )
    return [cell.rjust(width) for cell, (_, width) in zip(cells, COLUMNS, strict=True)]


def _console() -> Console:
    try:
        from rich.console import Console
    except ImportError as error:
        raise InputError("the demo prints with rich: pip install 'gnnquant[demo]'") from error
    return Console()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside ``path``, then put it in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
