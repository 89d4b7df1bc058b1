"""Arguments, error lines and exit codes."""

import runpy
import sys
from pathlib import Path

import pytest

from gnnquant import cli, demo
from gnnquant.errors import InputError
from gnnquant.runtime.artifact import ArtifactPayload, write_artifact
from gnnquant.runtime.host import requirements
from gnnquant.runtime.plan import Plan


def exit_code(arguments: list[str]) -> int:
    try:
        return cli.main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["demo", "--help"], ["info", "--help"], ["cmake-dir", "--help"], ["--version"]]
)
def test_help_and_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 0
    assert "gnnquant" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["demo", "--bits", "3"],
        ["demo", "--bits"],
        ["demo", "--dataset", "MNIST"],
        ["demo", "--model", "transformer"],
        ["demo", "--epochs", "0"],
        ["demo", "--epochs", "many"],
        ["demo", "--seed", "x"],
        ["demo", "surplus"],
        ["info"],
    ],
)
def test_wrong_arguments_get_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "error:" in captured.err


def test_arguments_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(demo, "run_demo", seen.append)
    assert cli.main(["demo"]) == 0
    command = "demo --dataset Cora --data-root d --model gat --bits 2 8 2 --epochs 7 --out o --seed 3"
    assert cli.main(command.split()) == 0
    assert seen[0] == demo.DemoOptions()
    assert seen[1].dataset == "Cora"
    assert seen[1].data_root == "d"
    assert seen[1].model == "gat"
    assert seen[1].bits == (2, 8)
    assert (seen[1].epochs, str(seen[1].out), seen[1].seed) == (7, "o", 3)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("two\n  lines"), 1, "gnnquant: error: two lines\n"),
        (PermissionError(13, "Permission denied", "/out"), 1, "gnnquant: error: [Errno 13]"),
        (KeyboardInterrupt(), 130, "gnnquant: interrupted\n"),
    ],
)
def test_errors_become_one_line(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(options: demo.DemoOptions) -> None:
        raise error

    monkeypatch.setattr(demo, "run_demo", fail)
    assert cli.main(["demo"]) == code
    captured = capsys.readouterr().err
    assert captured.startswith(line)
    assert captured.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"GIF89a", b"GNNQ\x01"])
def test_info_of_a_file_that_is_no_artifact(content, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.gnnq"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["info", str(path)]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "model.gnnq" in captured


def test_python_dash_m(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gnnquant", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("gnnquant", run_name="__main__")
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("gnnquant ")


def test_info_describes_code_for_another_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = requirements("s390x-linux-gnu", "z15", [])
    plan = Plan((), (), (), (), (), (), ())
    write_artifact(tmp_path / "model.gnnq", ArtifactPayload(plan, {}, b"code", {"target": target}))
    assert cli.main(["info", str(tmp_path / "model.gnnq")]) == 0
    said = capsys.readouterr().out
    assert "cannot run here: it needs the architecture s390x" in said
    assert "mcpu z15" in said


def test_the_folder_of_the_cmake_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cmake-dir"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "gnnquantConfig.cmake").is_file()
