"""Benchmark: the order of calls, valid inputs, the products off the fast path, load cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.runtime import bench, cpu_name, default_threads
from obert_compiler.runtime.bench import interleave
from obert_compiler.runtime.engine import InputSpec
from obert_compiler.runtime.fast_path import count_products
from obert_compiler.runtime.feeds import index_limits, random_feed
from obert_compiler.runtime.measure import load_cost, model_bytes


def test_models_take_turns_after_the_warm_up() -> None:
    """Each turn begins with a call that is not timed."""
    calls: list[str] = []
    both = [lambda: calls.append("A"), lambda: calls.append("B")]
    times = interleave(both, runs=7, warm_up=2)
    assert "".join(calls) == "ABAB" + "AAAAAA" + "BBBBBB" + "AAA" + "BBB"
    assert [len(t) for t in times] == [7, 7]
    assert min(min(t) for t in times) >= 0
    calls.clear()
    assert [len(t) for t in interleave(both[:1], runs=7, warm_up=2)] == [7]
    assert "".join(calls) == "A" * 9


def test_two_models(model_file: Path, make_model: Callable[..., Path]) -> None:
    other = make_model("other")
    found = bench(model_file, other, batch=2, sequence=16, threads=1, runs=3, warm_up=1)
    assert found.against is not None
    assert found.ratio == pytest.approx(found.against.median_ms / found.model.median_ms)
    assert found.model.min_ms <= found.model.median_ms
    assert found.model.tokens_per_second == pytest.approx(32 / (found.model.median_ms / 1e3))
    assert found.cpu == cpu_name()
    described = found.to_dict()
    assert (described["batch"], described["sequence"], described["runs"]) == (2, 16, 3)
    assert described["products"] is None or described["engine"] == "cpu"


def test_products_are_counted_where_onnx_runtime_runs_alone(model_file: Path) -> None:
    described = bench(model_file, runs=1, warm_up=0, engine="cpu").to_dict()
    assert described["products"] == {"integer": 0, "float": 1, "names": ["product"]}
    assert described["claims"] is None
    assert described["reason"] == ""


def test_each_model_in_an_engine_of_its_own(model_file: Path) -> None:
    found = bench(model_file, model_file, engine="cpu", against_engine="openvino", runs=1)
    assert (found.engine, found.against_engine) == ("cpu", "openvino")


def test_one_model(model_file: Path) -> None:
    found = bench(model_file.parent, runs=1, warm_up=0)
    assert found.against is None
    assert found.ratio is None
    assert found.threads == default_threads() >= 1


@pytest.mark.parametrize("option", ["batch", "sequence", "runs"])
def test_misuse(model_file: Path, option: str) -> None:
    with pytest.raises(UsageError, match="expected at least 1, found 0"):
        bench(model_file, **{option: 0})  # type: ignore[arg-type]


def test_a_size_that_the_model_refuses(make_model: Callable[..., Path]) -> None:
    # Fixed dimensions stay what they are.
    assert bench(make_model("fixed", 2, 5), batch=7, sequence=99, runs=1).runs == 1


def test_random_inputs_are_valid() -> None:
    integers = np.dtype(np.int64)
    specs = [
        InputSpec("input_ids", integers, (None, None)),
        InputSpec("attention_mask", integers, (None, None)),
        InputSpec("token_type_ids", integers, (None, None)),
        InputSpec("position_ids", np.dtype(np.int32), (None, None)),
        InputSpec("image", np.dtype(np.float32), (None, 3, 4, 4)),
        InputSpec("unknown", integers, (None, None)),
        InputSpec("use_cache", np.dtype(np.bool_), (1,)),
    ]
    feed = random_feed(specs, 4, 50, {"input_ids": 10})
    assert feed["input_ids"].min() == 0
    assert feed["input_ids"].max() == 9
    assert feed["attention_mask"].min() == 1
    assert feed["token_type_ids"].max() == 0
    assert feed["position_ids"][3].tolist() == list(range(50))
    assert feed["position_ids"].dtype == np.int32
    assert feed["image"].shape == (4, 3, 4, 4)
    assert feed["unknown"].max() == 0
    assert feed["use_cache"].all()
    again = random_feed(specs, 4, 50, {"input_ids": 10})
    assert all(np.array_equal(feed[name], again[name]) for name in feed)


def _gather_model(path: Path, quantised: bool) -> Path:
    """Two index inputs, one through a Cast; tables of 40 and 7 rows."""
    node, value = helper.make_node, helper.make_tensor_value_info
    constants = {"types": np.zeros((7, 4), np.float32)}
    nodes = [node("Cast", ["kind"], ["kind64"], to=TensorProto.INT64)]
    if quantised:
        constants |= {"codes": np.zeros((40, 4), np.int8), "scale": np.float32(0.1)}
        nodes.append(node("DequantizeLinear", ["codes", "scale"], ["words"]))
    else:
        constants["words"] = np.zeros((40, 4), np.float32)
    nodes += [
        node("Gather", ["words", "ids"], ["a"]),
        node("Gather", ["types", "kind64"], ["b"]),
        node("Add", ["a", "b"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gather",
        [value("ids", TensorProto.INT64, ["n", "s"]), value("kind", TensorProto.INT32, ["n", "s"])],
        [value("out", TensorProto.FLOAT, ["n", "s", 4])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
        value_info=[value("words", TensorProto.FLOAT, [40, 4])] if quantised else [],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


@pytest.mark.parametrize("quantised", [False, True])
def test_index_limits_are_read_off_the_tables(tmp_path: Path, quantised: bool) -> None:
    assert index_limits(_gather_model(tmp_path / "a.onnx", quantised)) == {"ids": 40, "kind": 7}


def test_configuration_stands_in_for_a_table_that_is_not_found(tmp_path: Path) -> None:
    path = _gather_model(tmp_path / "a.onnx", quantised=False)
    (tmp_path / "config.json").write_text('{"vocab_size": 123}')
    assert index_limits(path)["input_ids"] == 123


def test_products_in_integers_and_in_float(make_model: Callable[..., Path]) -> None:
    floating = count_products(make_model("float"))
    assert (floating.integer, floating.floating) == (0, ("product",))
    integer = count_products(make_model("integer", quantised=True))
    assert (integer.integer, integer.floating) == (1, ())
    assert integer.ops["Gather"] == 1
    dequantised = count_products(make_model("dequantised", shared=True))
    assert (dequantised.integer, dequantised.floating) == (0, ("product",))


def test_bytes_count_external_data(model_file: Path, tmp_path: Path) -> None:
    assert model_bytes(model_file) == model_file.stat().st_size
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(
        onnx.load(model_file),
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (folder / "unrelated.bin").write_bytes(b"x" * 1000)
    parts = [(folder / name).stat().st_size for name in ("model.onnx", "weights.bin")]
    assert model_bytes(folder) == sum(parts)
    assert min(parts) > 0


def test_load_cost_is_measured_in_a_process_of_its_own(model_file: Path) -> None:
    cost = load_cost(model_file, threads=1, repeats=1)
    assert cost.seconds > 0
    assert cost.peak_bytes >= cost.resident_bytes > 0


def test_load_cost_of_a_broken_file(model_file: Path) -> None:
    model_file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"expected it to load, found: .*ModelError"):
        load_cost(model_file, repeats=1)
