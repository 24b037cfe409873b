"""Embedding tables: every architecture, tied decoders, quantised tables, and why not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from obert_compiler.graph import Graph
from obert_compiler.graph.embeddings import find_embeddings

TYPES, WORDS, POSITIONS = "token_type_embeddings", "word_embeddings", "position_embeddings"
# Last part of the name -> columns, whether the ids come from the inputs' contents.
TABLES = {
    "bert": {WORDS: (32, True), TYPES: (32, True), POSITIONS: (32, False)},
    "roberta": {WORDS: (32, True), POSITIONS: (32, True)},
    "distilbert": {WORDS: (32, True), POSITIONS: (32, False)},
    "electra": {WORDS: (16, True), TYPES: (16, True), POSITIONS: (16, False)},
    "mpnet": {WORDS: (32, True), POSITIONS: (32, True), "relative_attention_bias": (4, False)},
    "albert": {WORDS: (16, True), TYPES: (16, True), POSITIONS: (16, False)},
    "deberta-v2": {WORDS: (32, True), POSITIONS: (32, False)},
    "deberta-v3": {WORDS: (32, True)},
    "modernbert": {"tok_embeddings": (32, True)},
}


@pytest.mark.parametrize("arch", TABLES)
def test_tables_of_every_architecture(arch: str, tiny_graph: Callable[[str, str], Graph]) -> None:
    found = find_embeddings(tiny_graph(arch, "sequence"))
    tables = {s.name.rsplit(".", 1)[-1]: (s.columns, s.reads_inputs) for s in found}
    if arch == "roberta":  # its one token type is a table of two rows or a constant row
        tables.pop(TYPES, None)
    assert tables == TABLES[arch]
    assert not any(site.also_linear for site in found)


def test_relative_positions_of_deberta_are_no_table(
    tiny_graph: Callable[[str, str], Graph],
) -> None:
    (unmatched,) = find_embeddings(tiny_graph("deberta-v3", "sequence")).unmatched
    assert unmatched.name.endswith("rel_embeddings.weight")
    assert "no rows are gathered" in unmatched.reason


def test_tied_decoder(graph_from_text: Callable[..., Graph]) -> None:
    graph = graph_from_text(
        """g (int64[b, s] ids) => (float[b, s, 10] y) {
            h = Gather(table, ids)
            back = Transpose(table)
            y = MatMul(h, back)
        }""",
        table=(10, 4),
    )
    (site,) = find_embeddings(graph)
    assert (site.rows, site.columns) == (10, 4)
    assert site.also_linear
    assert site.linear_sites == ("table",)


def test_one_table_of_two_gathers(graph_from_text: Callable[..., Graph]) -> None:
    graph = graph_from_text(
        """g (int64[b, s] ids, int64[b, s] more) => (float[b, s, 4] y) {
            h = Gather(table, ids)  m = Gather(table, more)  y = Add(h, m)
        }""",
        table=(10, 4),
    )
    (site,) = find_embeddings(graph)
    assert [node.outputs[0].name for node in site.gathers] == ["h", "m"]


QUANTISED = {"codes": np.ones((10, 4), np.int8), "scale": np.full(10, 0.1, np.float32)}


@pytest.mark.parametrize(
    "body",
    [
        "t = DequantizeLinear<axis=0>(codes, scale)  y = Gather(t, ids)",
        "r = Gather(codes, ids)  y = DequantizeLinear(r, one)",
    ],
)
def test_quantised_table(body: str, graph_from_text: Callable[..., Graph]) -> None:
    text = f"g (int64[b, s] ids) => (float[b, s, 4] y) {{ {body} }}"
    graph = graph_from_text(text, **QUANTISED, one=np.array(0.1, np.float32))
    (site,) = find_embeddings(graph)
    assert (site.root.name, site.rows, site.columns) == ("codes", 10, 4)


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        ("y = Gather(t, ids)", (3, 4, 5), "3 dimensions"),
        ("y = Gather<axis=1>(t, ids)", (3, 4), "columns are gathered"),
    ],
)
def test_why_not(
    body: str, shape: tuple[int, ...], reason: str, graph_from_text: Callable[..., Graph]
) -> None:
    graph = graph_from_text(f"g (int64[b] ids) => (float[?] y) {{ {body} }}", t=shape)
    found = find_embeddings(graph)
    assert found.sites == ()
    assert reason in found.unmatched[0].reason
