"""The command line: ``gnnquant demo``, ``info``, ``export`` and ``cmake-dir``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gnnquant.datasets import DATA_ROOT_VARIABLE, DATASETS
from gnnquant.demo import MODEL_NAMES, DemoOptions
from gnnquant.errors import ArtifactError, BackendError, GnnQuantError

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED = 1
INTERRUPTED = 130
CMAKE_FOLDER = Path(__file__).resolve().parent / "runtime" / "cpp" / "cmake"
"""Where CMake finds the package of the C++ runtime."""


class _Parser(argparse.ArgumentParser):
    """Answers wrong arguments with one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program's name; ``None``: those of the process.

    Returns:
        Exit code: 0, 1 (an error, printed as one line) or 130 (Ctrl-C). Wrong arguments exit
        with code 2.
    """
    options = _parser().parse_args(argv)
    try:
        if options.command == "demo":
            _demo(options)
        elif options.command == "export":
            _export(options.model, options.out, options.opset)
        elif options.command == "info":
            _info(options.artifact)
        else:
            print(CMAKE_FOLDER)
    except KeyboardInterrupt:
        print("gnnquant: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (GnnQuantError, OSError) as error:
        print(f"gnnquant: error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    import gnnquant

    parser = _Parser(prog="gnnquant", description="Quantize PyTorch Geometric models and compile them.")
    parser.add_argument("--version", action="version", version=f"gnnquant {gnnquant.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    default = DemoOptions()
    demo = commands.add_parser(
        "demo",
        help="train, quantize, compile, check and time a model",
        description="Train a model in FP32, then for each width convert, fine-tune and compile it, "
        "compare it with the integer reference, time it, save it and print a row.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument(
        "--dataset",
        choices=DATASETS,
        default=default.dataset,
        help="digits is embedded; the others are read from --data-root or downloaded by PyG",
    )
    demo.add_argument(
        "--data-root",
        metavar="DIR",
        help=f"folder that holds Cora/raw and the like; else {DATA_ROOT_VARIABLE}",
    )
    demo.add_argument("--model", choices=MODEL_NAMES, default=default.model, help="architecture")
    demo.add_argument(
        "--bits", type=int, choices=(8, 4, 2), nargs="+", default=default.bits, help="widths to run"
    )
    demo.add_argument(
        "--epochs",
        type=_positive,
        default=default.epochs,
        metavar="N",
        help="epochs of the FP32 training and of each fine-tuning",
    )
    demo.add_argument("--out", type=Path, default=default.out, metavar="DIR", help="folder for results")
    demo.add_argument("--seed", type=int, default=default.seed, metavar="N", help="random seed")

    info = commands.add_parser(
        "info",
        help="describe a saved model",
        description="Verify an artifact and print what it holds. Its code is not run.",
    )
    info.add_argument("artifact", type=Path, metavar="MODEL.gnnq", help="file that save() wrote")

    export = commands.add_parser(
        "export",
        help="write a converted model as ONNX",
        description="Read a converted model that torch.save(q, ...) wrote, and write it as a standard ONNX "
        "file for graphs of any size. ONNX Runtime runs it beside the integer reference before it gets its "
        "name. Needs pip install 'gnnquant[onnx]'. Reading MODEL.pt can run any code in it: use only files "
        "whose origin you trust.",
    )
    export.add_argument("model", type=Path, metavar="MODEL.pt", help="what gnnquant.convert returned")
    export.add_argument("out", type=Path, metavar="OUT.onnx", help="file to write")
    export.add_argument(
        "--opset",
        type=_positive,
        metavar="N",
        help="operator set, 18 to 25; 21 and up for models with weights of 4 or 2 bits, which 25 packs "
        "with 2 bits too; else the newest that onnxruntime runs right",
    )

    commands.add_parser(
        "cmake-dir",
        help="print the folder of the CMake package",
        description="Print the folder that CMake's find_package(gnnquant) needs as gnnquant_DIR: the C++ "
        "runtime, which runs saved models without Python.",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    from gnnquant.demo import run_demo

    run_demo(
        DemoOptions(
            dataset=options.dataset,
            data_root=options.data_root,
            model=options.model,
            bits=tuple(dict.fromkeys(options.bits)),
            epochs=options.epochs,
            out=options.out,
            seed=options.seed,
        )
    )


def _info(path: Path) -> None:
    from gnnquant.runtime.artifact import describe, from_bytes
    from gnnquant.runtime.host import missing_requirements

    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    payload = from_bytes(content, str(path), check_machine=False)
    print(f"{path}: {len(content):,} bytes, of which code {len(payload.library):,} (unpacked)")
    for lacking in missing_requirements(payload.metadata["target"]):
        print(f"cannot run here: it needs {lacking}")
    for name, value in describe(payload).items():
        if isinstance(value, list):
            for item in value:
                print(f"{name[:-1]}: {_plain(item)}")
        else:
            print(f"{name}: {_plain(value)}")


def _export(source: Path, out: Path, opset: int | None) -> None:
    import torch

    from gnnquant.backends.onnx import export_onnx

    try:
        # The file holds a whole module: loading it runs what its pickle says.
        model = torch.load(source, map_location="cpu", weights_only=False)
    except OSError as error:
        raise BackendError(f"{source} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a pickle fails in any way
        raise BackendError(
            f"{source} is no model that torch.save(q, path) wrote here: {type(error).__name__}: {error}"
        ) from error
    export_onnx(model, out, opset=opset)
    if not out.is_file():  # what went into a pipe cannot be read again
        return
    import onnx

    written = onnx.load(out)
    facts = {item.key: item.value for item in written.metadata_props}
    number = written.opset_import[0].version
    print(
        f"{out}: {out.stat().st_size:,} bytes, {facts['bits']} bits, opset {number}, compared with the "
        f"reference: {facts['compared']}"
    )


def _plain(value: object) -> str:
    """Nested values on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)
