"""Files that are written whole."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from gnnquant.folders import write_whole

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in (b"first", b""):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "link"
    link.symlink_to("folder/model")
    write_whole(link, b"content")
    assert link.is_symlink()
    assert (tmp_path / "folder" / "model").read_bytes() == b"content"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_whole(pipe, b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("name", "code"),
    [("absent/model", errno.ENOENT), ("file/model", errno.ENOTDIR), (".", errno.EISDIR), ("", errno.EISDIR)],
)
def test_errors_name_what_was_asked_for(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        write_whole(name, b"content")
    assert (raised.value.errno, raised.value.filename) == (code, name)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
