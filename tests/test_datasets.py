"""The embedded graph, and how the files of the others are found, copied or asked for."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from gnnquant import InputError, datasets
from gnnquant.datasets import load_dataset, raw_files


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or data folder, and none downloads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(datasets.DATA_ROOT_VARIABLE, raising=False)

    def offline(*arguments: object) -> None:
        raise OSError("network is unreachable")

    for download in ("planetoid.fs.cp", "coauthor.download_url", "amazon.download_url"):
        monkeypatch.setattr(f"torch_geometric.datasets.{download}", offline)


def write_raw(root: Path, name: str = "Cora") -> Path:
    """A tiny graph in the layout of the Planetoid files: 4 labelled nodes, 500 more, 2 test nodes."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    words = np.eye(5, dtype=np.float32)[np.arange(506) % 5]
    words[:, 0] = 1
    features = scipy.sparse.csr_matrix(words)
    labels = np.eye(2, dtype=np.int32)[np.arange(506) % 2]
    parts = {
        "x": features[:4],
        "tx": features[504:],
        "allx": features[:504],
        "y": labels[:4],
        "ty": labels[504:],
        "ally": labels[:504],
        "graph": {node: [(node + 1) % 506, (node - 1) % 506] for node in range(506)},
    }
    for part, value in parts.items():
        (folder / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(value))
    (folder / f"ind.{name.lower()}.test.index").write_text("504\n505\n", encoding="ascii")
    return folder


def test_digits_is_a_symmetric_graph_with_a_fixed_split() -> None:
    data = load_dataset("digits")
    assert data.x.shape == (1797, 64)
    assert data.x.dtype == torch.float32
    assert 0 <= float(data.x.min()) <= float(data.x.max()) == 1
    assert data.edge_index.dtype == data.y.dtype == torch.int64
    assert data.is_undirected()
    assert not data.has_self_loops()
    assert int(torch.bincount(data.edge_index[0]).min()) >= 10
    assert data.y[data.train_mask].bincount().tolist() == [20] * 10
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert masks.sum(dim=1).tolist() == [200, 500, 1097]
    assert masks.sum(dim=0).tolist() == [1] * 1797
    # The split itself: a change of it would change every published number.
    assert data.train_mask.nonzero().flatten()[:5].tolist() == [6, 14, 18, 34, 37]


def test_an_unknown_dataset_is_refused() -> None:
    with pytest.raises(InputError, match="choose one of digits, Cora"):
        load_dataset("MNIST")


@pytest.mark.parametrize("through", ["argument", "variable"])
def test_raw_files_are_found(through: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raw(tmp_path / "data")
    if through == "variable":
        monkeypatch.setenv(datasets.DATA_ROOT_VARIABLE, str(tmp_path / "data"))
        data = load_dataset("Cora")
    else:
        data = load_dataset("Cora", tmp_path / "data")
    assert data.num_nodes == 506
    torch.testing.assert_close(data.x.sum(dim=1), torch.ones(506))
    assert int(data.train_mask.sum()) == 4


def test_a_read_only_folder_is_copied_and_left_alone(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "data")
    raw.parent.chmod(0o555)
    try:
        for _ in range(2):
            assert load_dataset("Cora", tmp_path / "data").num_nodes == 506
        assert [path.name for path in raw.parent.iterdir()] == ["raw"]
        copy = tmp_path / "cache" / "gnnquant" / "planetoid" / "Cora"
        assert (copy / "processed").is_dir()
        # A change of the original replaces the copy, and what PyG made of it.
        (raw / "ind.cora.test.index").write_text("505\n504\n", encoding="ascii")
        load_dataset("Cora", tmp_path / "data")
        assert (copy / "raw" / "ind.cora.test.index").read_text(encoding="ascii") == "505\n504\n"
    finally:
        raw.parent.chmod(0o755)


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("damage", ["absent", "empty"])
def test_missing_files_are_listed(read_only: bool, damage: str, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "data")
    for part in ("graph", "test.index"):
        path = raw / f"ind.cora.{part}"
        path.unlink()
        if damage == "empty":
            path.touch()
    if read_only:
        raw.parent.chmod(0o555)
    try:
        with pytest.raises(InputError) as caught:
            load_dataset("Cora", tmp_path / "data")
    finally:
        raw.parent.chmod(0o755)
    message = str(caught.value)
    assert "ind.cora.graph, ind.cora.test.index." in message
    assert str(raw) in message
    assert "GNNQUANT_DATA" in message
    assert "\n" not in message


def test_offline_without_any_file_all_are_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"could not be downloaded.*network is unreachable") as caught:
        load_dataset("PubMed", tmp_path / "new")
    assert all(file in str(caught.value) for file in raw_files("PubMed"))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "data")
    (raw / "ind.cora.graph").write_bytes(b"not a pickle")
    with pytest.raises(InputError, match=r"cannot be read.*delete"):
        load_dataset("Cora", tmp_path / "data")


@pytest.mark.parametrize("name", ["CS", "Physics", "Computers", "Photo"])
def test_graphs_without_a_public_split_get_one(name: str, tmp_path: Path) -> None:
    (file,) = raw_files(name)
    folder = tmp_path / name / "raw"
    folder.mkdir(parents=True)
    words = scipy.sparse.csr_matrix(np.eye(6, dtype=np.float32)[np.arange(700) % 6] * 3)
    links = scipy.sparse.csr_matrix((np.ones(699), (np.arange(699), np.arange(1, 700))), shape=(700, 700))
    parts = {
        f"{what}_{part}": getattr(matrix, part)
        for what, matrix in (("attr", words), ("adj", links))
        for part in ("data", "indices", "indptr", "shape")
    }
    np.savez(folder / file, labels=np.arange(700) % 3, **parts)
    data = load_dataset(name, tmp_path)
    assert data.x.shape == (700, 6)
    assert data.num_edges == 2 * 699
    torch.testing.assert_close(data.x.sum(dim=1), torch.ones(700))
    assert data.y[data.train_mask].bincount().tolist() == [20] * 3
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask])
    assert masks.sum(dim=1).tolist() == [60, 500, 140]
    with pytest.raises(InputError, match=f"could not be downloaded.*{file}"):
        load_dataset(name, tmp_path / "new")
