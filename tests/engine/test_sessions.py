"""Every architecture with the engine and without it: the same numbers, at every shape."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    RuntimeException,
)

from obert_compiler.runtime import engine_use, session
from obert_compiler.runtime.provider import engine_device
from obert_compiler.runtime.session import session_options

Arrays = dict[str, np.ndarray]
Compiled = Callable[[str, str], Path]
Pair = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]
Both = Callable[..., Pair]
Tokens = Callable[..., Arrays]
AssertClose = Callable[[list[np.ndarray], list[np.ndarray]], None]

SHAPES = ((1, 1), (1, 7), (3, 17), (2, 63), (2, 64), (1, 65), (5, 33), (7, 16), (9, 20), (2, 100))


@pytest.mark.parametrize(
    ("arch", "head", "share"),
    [
        ("bert", "sequence", 0.9),
        ("bert", "qa", 0.9),
        ("bert", "embedding", 0.9),
        ("roberta", "token", 0.9),
        ("xlm-roberta", "reranker", 0.9),
        ("distilbert", "mlm", 0.9),
        ("electra", "sequence", 0.9),
        ("mpnet", "sequence", 0.85),
        ("albert", "mlm", 0.9),
        ("deberta-v2", "sequence", 0.8),
        ("deberta-v3", "sequence", 0.8),
        ("modernbert", "mlm", 0.85),
        ("gte", "embedding", 0.9),
        ("nomic_bert", "sequence", 0.9),
        ("jina_embeddings_v3", "token", 0.9),
        ("eurobert", "token", 0.85),
        ("mobilebert", "sequence", 0.9),
        ("t5", "embedding", 0.85),
        ("qwen3", "embedding", 0.85),
        ("gemma3_text", "embedding", 0.85),
    ],
)
def test_equal_to_onnx_runtime(
    arch: str,
    head: str,
    share: float,
    compiled: Compiled,
    both: Both,
    tokens: Tokens,
    assert_close: AssertClose,
) -> None:
    """``share``: of the nodes, at least what the engine takes."""
    ours, theirs = both(compiled(arch, head))
    claims = engine_use(ours).claims
    assert claims is not None
    assert claims.claimed >= share * claims.nodes, claims.describe()
    assert not [left for left in claims.left if left.op in {"Softmax", "LayerNormalization"}]
    names = input_names(ours)
    same = total = 0
    for batch, length in SHAPES:
        feed = tokens(names, batch, length, seed=batch + length)
        found, expected = ours.run(None, feed), theirs.run(None, feed)
        assert_close(found, expected)
        labels = [values[0].argmax(-1) for values in (found, expected)]
        same += int((labels[0] == labels[1]).sum())
        total += labels[0].size
    assert same >= 0.995 * total


def input_names(opened: onnxruntime.InferenceSession) -> list[str]:
    """Names of the inputs of a session."""
    return [value.name for value in opened.get_inputs()]


@pytest.fixture(scope="module")
def bert(compiled: Compiled) -> Path:
    """A packed BERT classifier."""
    return compiled("bert", "sequence")


def test_unpacked_and_packed_are_the_same(
    tiny_graph: Any, bert: Path, both: Both, tokens: Tokens
) -> None:
    """A file without the pack pass holds the same integers."""
    from obert_compiler.data.batches import Batches
    from obert_compiler.pipeline.manager import PassManager

    graph = tiny_graph("bert", "sequence")
    names = [value.name for value in graph.model.graph.inputs]
    data = Batches.from_arrays(tokens(names, 32, 24))
    passes = "prune:method=magnitude:sparsity=0.8:block=4,quant:min_outputs=1"
    plain = session(PassManager(passes).run(graph, data=data), engine="obert")
    feed = tokens(names, 4, 20)
    assert np.array_equal(plain.run(None, feed)[0], both(bert)[0].run(None, feed)[0])


def test_no_padding_and_nothing_but_padding(
    bert: Path, both: Both, tokens: Tokens, assert_close: AssertClose
) -> None:
    ours, theirs = both(bert)
    feed = tokens(input_names(ours), 3, 12)
    for mask in (np.ones((3, 12)), np.zeros((3, 12)), np.arange(12)[None].repeat(3, 0) % 2):
        feed["attention_mask"] = mask.astype(np.int64)
        assert_close(ours.run(None, feed), theirs.run(None, feed))


def test_probabilities_of_16_bits(
    bert: Path, both: Both, tokens: Tokens, assert_close: AssertClose
) -> None:
    def opened(attention: str) -> onnxruntime.InferenceSession:
        options = session_options(2)
        settings = {"threads": "2", "attention": attention}
        options.add_provider_for_devices([engine_device()], settings)
        return onnxruntime.InferenceSession(str(bert), options, enable_fallback=0)

    ours, theirs = both(bert)
    feed = tokens(input_names(ours), 4, 30)
    assert np.array_equal(opened("float").run(None, feed)[0], ours.run(None, feed)[0])
    assert_close(opened("int16").run(None, feed), theirs.run(None, feed))
    with pytest.raises(Exception, match="expected float or int16, found 'half'"):
        opened("half")


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (0, 0), (2, 0)])
def test_empty_batch(bert: Path, both: Both, tokens: Tokens, batch: int, length: int) -> None:
    """Like ONNX Runtime: an empty result, or an error where that has one."""
    ours, theirs = both(bert)
    feed = tokens(input_names(ours), batch, length)
    try:
        expected = theirs.run(None, feed)
    except (Fail, InvalidArgument):  # what ONNX Runtime refuses, the engine need not compute
        with pytest.raises((Fail, InvalidArgument)):
            ours.run(None, feed)
    else:
        found = ours.run(None, feed)
        assert [value.shape for value in found] == [value.shape for value in expected]


def test_inputs_that_do_not_fit_are_an_error(bert: Path, both: Both, tokens: Tokens) -> None:
    ours, _ = both(bert)
    feed = tokens(input_names(ours), 2, 8)
    outside = feed | {"input_ids": feed["input_ids"] + 100_000}
    with pytest.raises(Fail, match=r"index|indices"):
        ours.run(None, outside)
    other_mask = feed | {"attention_mask": np.ones((2, 9), np.int64)}
    with pytest.raises((Fail, RuntimeException)):
        ours.run(None, other_mask)
    assert np.isfinite(ours.run(None, feed)[0]).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(bert: Path, both: Both, tokens: Tokens, threads: int) -> None:
    ours, _ = both(bert, threads)
    one, _ = both(bert, 1)
    names = input_names(ours)
    for batch, length in ((1, 65), (2, 128), (8, 24), (17, 9)):
        feed = tokens(names, batch, length)
        assert np.array_equal(ours.run(None, feed)[0], one.run(None, feed)[0])


def test_concurrent_runs_of_several_sessions(
    bert: Path, compiled: Compiled, both: Both, tokens: Tokens
) -> None:
    """Eight threads, three sessions of two models, shapes that change from call to call."""
    opened = [both(bert)[0], both(bert)[0], both(compiled("distilbert", "mlm"))[0]]
    work: list[tuple[int, Arrays, np.ndarray]] = []
    for place, ours in enumerate(opened):
        for batch, length in ((1, 5), (3, 40), (8, 17)):
            feed = tokens(input_names(ours), batch, length, seed=place)
            work.append((place, feed, ours.run(None, feed)[0]))
    wrong: list[str] = []

    def go(start: int) -> None:
        for turn in range(3 * len(work)):
            place, feed, expected = work[(start + turn) % len(work)]
            if not np.array_equal(opened[place].run(None, feed)[0], expected):
                wrong.append(f"session {place}, {feed['input_ids'].shape}")

    threads = [threading.Thread(target=go, args=(start,)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_instruction_sets_agree(
    compiled: Compiled, tokens: Tokens, answers: Any, assert_close: AssertClose
) -> None:
    """Within the bound; test_foreign_graphs.py asks for equal bits where all is integers."""
    feed = tokens(["input_ids", "attention_mask", "token_type_ids"], 5, 37)
    files = [compiled("bert", "sequence"), compiled("distilbert", "mlm")]
    found = answers([(file, feed) for file in files])
    for outputs in found.values():
        assert_close(outputs, found["portable"])
