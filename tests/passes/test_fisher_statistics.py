import json

import numpy as np
import pytest

from obert_compiler.errors import ArtefactError, GraphError
from obert_compiler.passes import fisher_statistics
from obert_compiler.passes.fisher_blocks import BlockLayout
from obert_compiler.passes.fisher_statistics import FisherStatistics


def symmetric(layout, seed=0):
    half = np.random.default_rng(seed).normal(size=(layout.count, layout.block, layout.block))
    return (half + half.transpose(0, 2, 1)).astype(np.float32)


@pytest.fixture
def written(tmp_path):
    first, second = BlockLayout(3, 10, 4), BlockLayout(5, 8, 4)
    statistics = FisherStatistics.create(tmp_path, 4)
    statistics.write("a", first, symmetric(first, 1))
    statistics.write("b/c", second, symmetric(second, 2))
    statistics.finish(7)
    return statistics


def test_blocks_are_read_back_exactly(written, monkeypatch):
    monkeypatch.setattr(fisher_statistics, "_CHUNK_BLOCKS", 2)
    np.testing.assert_array_equal(written.blocks("a"), symmetric(written.layouts["a"], 1))
    np.testing.assert_array_equal(written.blocks("b/c"), symmetric(written.layouts["b/c"], 2))


def test_they_can_be_opened_by_a_later_run(written, tmp_path):
    opened = FisherStatistics.open(tmp_path)
    assert (opened.block, opened.count, opened.layouts) == (4, 7, written.layouts)
    np.testing.assert_array_equal(opened.blocks("b/c"), written.blocks("b/c"))
    assert opened.mean_squares == written.mean_squares
    assert opened.bytes_of("a") == 9 * 10 * 4


def test_the_scale_is_the_mean_diagonal_over_all_weights(written):
    total = count = 0
    for name, layout in written.layouts.items():
        for row, block in enumerate(written.blocks(name)):
            width = min(4, layout.columns - 4 * (row % layout.per_row))
            total, count = total + np.diag(block)[:width].sum(), count + width
    assert count == 3 * 10 + 5 * 8
    assert written.mean_square == pytest.approx(total / count)


def test_a_damaged_folder_is_named(written, tmp_path):
    with (tmp_path / "fisher" / "1.f32").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ArtefactError, match=r"'b/c' has 404 bytes, not 400.*without --resume"):
        FisherStatistics.open(tmp_path)
    with pytest.raises(ArtefactError, match="expected the Fisher of an earlier run"):
        FisherStatistics.open(tmp_path / "nowhere")
    (tmp_path / "fisher" / "fisher.json").write_text(json.dumps({"block": 4}))
    with pytest.raises(ArtefactError, match="KeyError"):
        FisherStatistics.open(tmp_path)


def test_an_unknown_site_is_named(written):
    with pytest.raises(GraphError, match="site 'x': expected its Fisher"):
        written.blocks("x")


def test_a_second_estimate_replaces_the_first(written, tmp_path):
    FisherStatistics.create(tmp_path, 4)
    assert list((tmp_path / "fisher").iterdir()) == []


def test_without_a_folder_the_files_live_as_long_as_the_statistics():
    statistics = FisherStatistics.create(None, 4)
    folder = statistics.folder
    assert folder.is_dir()
    del statistics
    assert not folder.exists()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "fisher").write_text("in the way")
    with pytest.raises(ArtefactError, match="choose another"):
        FisherStatistics.create(tmp_path / "fisher", 4)
