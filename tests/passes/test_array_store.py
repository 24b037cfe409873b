"""Arrays in memory up to a bound."""

import numpy as np
import pytest

from obert_compiler.errors import ArtefactError
from obert_compiler.passes.array_store import ArrayStore


def test_arrays_come_back_whether_held_or_not():
    store = ArrayStore(held_bytes=100)
    arrays = {name: np.arange(i, i + 20, dtype=np.float32) for i, name in enumerate("abc")}
    for name, array in arrays.items():
        store[name] = array
    assert store.held_bytes == 80
    assert set(store) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(store[name], array)


def test_a_dropped_array_makes_room():
    store = ArrayStore(held_bytes=100)
    store["a"] = np.zeros(100, np.uint8)
    store["b"] = np.ones(100, np.uint8)
    del store["a"]
    store["c"] = np.full(100, 2, np.uint8)
    assert store.held_bytes == 100
    np.testing.assert_array_equal(store["b"], np.ones(100, np.uint8))
    del store["b"]
    assert list(store) == ["c"]
    with pytest.raises(KeyError):
        store["b"]


def test_files_go_away_with_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ArrayStore(held_bytes=0)
    store["a"] = np.zeros(4)
    assert list(tmp_path.rglob("*.npy"))
    del store
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(ArtefactError, match="expected room for them among temporary files"):
        ArrayStore(held_bytes=0)["a"] = np.zeros(4)
