"""Front end for Hugging Face models: a folder or hub id, loaded by transformers and exported."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import transformers

from obert_compiler.errors import ModelError, UsageError
from obert_compiler.frontends.canonical import canonicalise
from obert_compiler.frontends.configuration import TASK_OUTPUTS, read_config, task_of
from obert_compiler.frontends.dimensions import name_dimensions
from obert_compiler.frontends.new_head import describe_head, of_the_head, read_classes
from obert_compiler.frontends.sentence_embedding import add_sentence_embedding, read_modules
from obert_compiler.frontends.torch_module import export, parameter_bytes
from obert_compiler.graph.graph import Graph, Source
from obert_compiler.tasks import task_class

__all__ = ["lower_huggingface"]

_HUB_FILES = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*/config.json"]


def lower_huggingface(
    model: str | Path,
    *,
    task: str | None = None,
    tokenizer: str | Path | None = None,
    new_head: str | None = None,
) -> Graph:
    """Lower a Hugging Face folder or hub id.

    Attention is exported in its plain form (softmax of a masked product), weights as float32. A
    sentence-transformers folder (modules.json) gets the output ``sentence_embedding`` besides
    ``last_hidden_state``. With ``new_head``, the head for its classes has random weights, always
    the same ones.

    Raises:
        UsageError: the folder or hub id, its architecture or the task is unknown.
        ModelError: weights are missing, broken or not finite, or the export fails.
    """
    folder = _local_folder(model)
    config = read_config(folder)
    if config is None:
        raise UsageError(
            f"model '{model}': expected a Hugging Face folder with config.json or a folder with "
            "model.onnx, found neither"
        )
    task = task or task_of(config, folder)
    if task is None:
        raise UsageError(
            f"model '{model}': expected an architecture that names its task, found "
            f"{config.get('architectures')}; pass --task ({', '.join(TASK_OUTPUTS)})"
        )
    if task not in TASK_OUTPUTS:
        raise UsageError(f"task '{task}': expected one of {', '.join(TASK_OUTPUTS)}")
    sentences = task == "feature-extraction" and (folder / "modules.json").is_file()
    steps = read_modules(folder) if sentences else []
    classes = None if new_head is None else read_classes(new_head, task)
    module, missing = _load(folder, model, task, classes)
    if classes is not None:
        missing -= of_the_head(missing, str(module.base_model_prefix))
    loaded: Any = module.config  # with the defaults that config.json leaves out
    # A pooler may be missing where no output needs it, which only the graph shows.
    _refuse_untrained((name for name in missing if "pooler" not in name), model, task)
    taken = inspect.signature(module.forward).parameters
    inputs = _example_inputs(loaded, folder, tokenizer)
    inputs = {name: value for name, value in inputs.items() if name in taken}
    graph_model = _export(module, inputs, TASK_OUTPUTS[task])
    canonicalise(graph_model, parameters=set(module.state_dict()))
    _refuse_untrained(missing & graph_model.graph.initializers.keys(), model, task)
    source = Source(
        "huggingface",
        location=str(model),
        task=task,
        config=json.loads(loaded.to_json_string(use_diff=False)),
        folder=Path(tokenizer) if tokenizer is not None else folder,
        bytes_on_disk=parameter_bytes(module),
    )
    graph = Graph(graph_model, source)
    if steps:
        add_sentence_embedding(graph, steps)
    return graph


def _local_folder(model: str | Path) -> Path:
    path = Path(model)
    if path.is_dir():
        return path
    if path.exists():
        raise UsageError(
            f"model '{model}': expected a folder, a hub id or a .onnx file, found another file"
        )
    text = str(model)
    if isinstance(model, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:
        raise UsageError(f"model '{model}': no such folder or file; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UsageError(
            f"model '{text}': no such folder here and no such public model on the hub; check the "
            "name, or log in for a private one"
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UsageError(
            f"model '{text}': no such folder here, and the hub cannot be reached; check the path, "
            "or download the model where there is a network"
        ) from error


def _load(
    folder: Path, model: str | Path, task: str, classes: tuple[str, ...] | None
) -> tuple[torch.nn.Module, set[str]]:
    """The module in float32 with plain attention, and the parameters the checkpoint lacks."""
    from safetensors import SafetensorError

    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        if classes is not None:
            describe_head(config, classes, task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of a new head
            auto = task_class(task).auto_class(config.model_type)
            module, info = getattr(transformers, auto).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
            )
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(
            f"model '{model}': transformers {transformers.__version__} cannot load it for "
            f"{task}: {_first_line(error)}"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise ModelError(
            f"model '{model}': the weights cannot be read: {_first_line(error)}"
        ) from error
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    mismatched = list(info.get("mismatched_keys", ()))
    if classes is not None:
        renewed = of_the_head((name for name, *_ in mismatched), str(module.base_model_prefix))
        mismatched = [entry for entry in mismatched if entry[0] not in renewed]
    for name, found, expected in mismatched:
        raise ModelError(
            f"model '{model}': parameter '{name}': expected shape {tuple(expected)} by "
            f"config.json, found {tuple(found)}; use the configuration that belongs to the weights"
        )
    return module.eval(), set(info["missing_keys"])


def _refuse_untrained(names: Iterable[str], location: str | Path, task: str) -> None:
    for name in names:
        raise ModelError(
            f"model '{location}': the checkpoint holds no '{name}', which {task} needs; choose the "
            "task it was trained for"
        )


def _example_inputs(
    config: Any, folder: Path, tokenizer: str | Path | None
) -> dict[str, torch.Tensor]:
    """Two rows of 16 tokens; token types where the model has them and its tokenizer gives them."""
    shape = (2, 16)
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise ModelError(
            f"model '{folder}': expected a model of tokens, found a {config.model_type} without "
            "'vocab_size' in its configuration"
        )
    ids = torch.full(shape, 5, dtype=torch.long).clamp(max=config.vocab_size - 1)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, 12:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1 and _gives_token_types(
        tokenizer or folder, config
    ):
        inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
    return inputs


def _gives_token_types(folder: str | Path, config: Any) -> bool:
    file = Path(folder) / "tokenizer_config.json"
    if file.is_file():
        try:
            names = json.loads(file.read_text(encoding="utf-8")).get("model_input_names")
        except ValueError:
            names = None
        if names:
            return "token_type_ids" in names
    return config.model_type in {"bert", "electra", "albert", "deberta-v2", "deberta"}


def _export(
    module: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...]
) -> ir.Model:
    with torch.no_grad(), _plain_masks(), _without_cache(module.config):
        found = _called(module, inputs)
        names = [name for name, value in found.items() if isinstance(value, torch.Tensor)]
        dynamic = torch.export.Dim.DYNAMIC
        model = export(module, (), inputs, {name: {0: dynamic, 1: dynamic} for name in inputs})
    graph = model.graph
    for name, value in zip(names, list(graph.outputs), strict=True):
        if name in outputs:
            _rename_output(graph, value, name)
    kept = [value for value in graph.outputs if value.name in outputs]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    name_dimensions(model)
    return model


def _called(module: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    try:
        return module(**inputs)
    except Exception as error:  # the code of a model may raise anything
        raise ModelError(
            f"module '{type(module).__name__}': expected a model of {', '.join(inputs)}, found one "
            f"that refuses them: {type(error).__name__}: {_first_line(error)}"
        ) from error


@contextmanager
def _without_cache(config: Any) -> Iterator[None]:
    """Keys and values of earlier calls are no output of an encoder."""
    caches = getattr(config, "use_cache", None)
    if caches:
        config.use_cache = False
    try:
        yield
    finally:
        if caches:
            config.use_cache = caches


def _rename_output(graph: ir.Graph, value: ir.Value, name: str) -> None:
    for node in graph:
        for other in node.outputs:
            if other.name == name and other is not value:
                other.name = f"{name}_inner"
    value.name = name


@contextmanager
def _plain_masks() -> Iterator[None]:
    """Let transformers build attention masks by broadcasting.

    Its own eager masks index the padding mask by grids of positions, which ONNX can only say with
    GatherND over a [batch, sequence] grid.
    """
    try:
        from transformers import masking_utils
    except ImportError:
        yield
        return
    masks = masking_utils.ALL_MASK_ATTENTION_FUNCTIONS
    original: Callable[..., Any] = masks["eager"]

    def eager_mask(*args: Any, **options: Any) -> Any:
        plain = not args and options.get("attention_mask") is not None
        needed = {"q_length", "kv_length", "mask_function"}
        if not plain or not needed <= options.keys():
            return original(*args, **options)
        return _broadcast_mask(masking_utils, options)

    masks["eager"] = eager_mask
    try:
        yield
    finally:
        del masks["eager"]  # type: ignore[no-untyped-call]


def _broadcast_mask(masking_utils: Any, options: dict[str, Any]) -> torch.Tensor:
    """Additive mask ``[batch, 1, 1 or query, key]``: 0 where a token is seen, else the minimum."""
    padding = options["attention_mask"]
    dtype = options.get("dtype", torch.float32)
    seen = padding[:, None, None, :].to(torch.bool)
    function = options["mask_function"]
    if function is not masking_utils.bidirectional_mask_function:
        device = padding.device
        query = torch.arange(options["q_length"], device=device) + options.get("q_offset", 0)
        key = torch.arange(options["kv_length"], device=device) + options.get("kv_offset", 0)
        sequence = torch.arange(padding.shape[0], device=device)[:, None, None, None]
        head = torch.zeros((), dtype=torch.long, device=device)
        seen = seen & function(sequence, head, query[None, None, :, None], key[None, None, None, :])
    zero_bias = torch.zeros((), dtype=dtype, device=padding.device)
    return torch.where(seen, zero_bias, torch.finfo(dtype).min)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."
