"""The public surface, the lightness of the import, and which room may import which."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gnnquant

PACKAGE = Path(gnnquant.__file__).parent

PUBLIC = {
    "ArtifactError",
    "BackendError",
    "CompiledModel",
    "FineTuneError",
    "FineTuneResult",
    "GnnQuantError",
    "InputError",
    "PassError",
    "QuantConfig",
    "QuantSpec",
    "QuantizedModule",
    "SmoothPropagation",
    "Smoothness",
    "TraceError",
    "__version__",
    "calibrate",
    "compile",
    "convert",
    "export_onnx",
    "finetune",
    "load",
}

LEVELS = [
    {"errors"},
    {"config", "ir", "integer_graph", "exact_math", "folders"},
    {"quantizers", "tracing", "smoothness", "runtime", "data"},
    {"passes"},
    {"backends", "converter"},
    {"finetuning", "objective"},
    {"report", "cli", "demo", "demo_models", "datasets", "timing", "__main__"},
]
"""Rooms from the ground up: a room imports its own level and those below."""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_public_names_are_exactly_these() -> None:
    assert set(gnnquant.__all__) == PUBLIC
    assert dir(gnnquant) == sorted(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_loads(name: str) -> None:
    value = getattr(gnnquant, name)
    assert value is getattr(gnnquant, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        gnnquant.quantise  # noqa: B018 - reading it is the test


def test_functions_are_not_shadowed_by_modules() -> None:
    """``import gnnquant.backends`` and the like leave the public names what they are."""
    code = (
        "import gnnquant.converter, gnnquant.finetuning, gnnquant.backends, gnnquant.runtime, gnnquant as g;"
        "assert all(callable(f) for f in (g.convert, g.calibrate, g.finetune, g.compile, g.load))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import gnnquant",
        "import gnnquant; gnnquant.QuantConfig; gnnquant.InputError",
        "import gnnquant.cli",
    ],
)
def test_import_is_light(code: str) -> None:
    heavy = ["torch", "tvm", "torch_geometric", "onnx", "onnxruntime", "sklearn", "rich", "tqdm"]
    done = run_python(f"import sys; {code}; print([m for m in {heavy} if m in sys.modules])")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_runtime_needs_no_torch() -> None:
    done = run_python("import sys; sys.modules['torch'] = None; import gnnquant; gnnquant.load")
    assert done.returncode == 0, done.stderr


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports when it runs; imports for the type checker do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {room_of(alias.name) for alias in node.names if alias.name.startswith("gnnquant.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "gnnquant":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gnnquant."):
            found.add(room_of(node.module or ""))
    return found


def sources() -> list[Path]:
    return sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path: Path) -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert room in level, f"add {room!r} to LEVELS"
    assert not {other for other in imports_of(path) if level.get(other, 0) > level[room]}


def test_a_pass_never_imports_another_pass() -> None:
    shared = {"base", "constants", "inserter", "rewriting", "sites", "lowering"}
    files = [path for path in (PACKAGE / "passes").glob("*.py") if path.stem not in {*shared, "__init__"}]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        others = {m.split(".")[2] for m in modules if m.startswith("gnnquant.passes.")} - shared
        assert not others, path
