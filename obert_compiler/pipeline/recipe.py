"""Recipes: a compile written down in YAML, so that it can be run again.

Example::

    passes:
      - prune:sparsity=0.8:block=4
      - quant
      - pack: {}
      - drop-layers: {keep: 6}
    task: text-classification
    seed: 0

A pass is a text in the grammar of ``--passes``, or a mapping of its name to its options. Every
other key is an option of ``obertc compile``; an option on the command line wins.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import obert_compiler
from obert_compiler.errors import UsageError

__all__ = ["Recipe", "read_recipe", "write_recipe"]


@dataclass(frozen=True)
class Recipe:
    """What a compile is made of.

    Attributes:
        passes: pass texts in the grammar of ``--passes``.
        model: what was compiled: folder, hub id or file.
        task: task name, None to read it from the model.
        new_head: classes of a head that is not trained yet, as `obert_compiler.lower` takes them.
        data: calibration and Fisher data; None for the text that ships with the package.
        teacher: model that training distils from; None for the model as it was before the passes.
        eval_data: held-out data for the metric before and after.
        backend: back end text in the same grammar.
        tokenizer: folder of the tokenizer where the model has none beside it.
        seq_len: longest sequence in tokens.
        samples: number of examples taken from ``data``; None for all that the passes ask for.
        seed: seed of every random choice.
    """

    passes: tuple[str, ...] = ()
    model: str | None = None
    task: str | None = None
    new_head: str | None = None
    data: str | None = None
    eval_data: str | None = None
    teacher: str | None = None
    backend: str = "onnx"
    tokenizer: str | None = None
    seq_len: int = 128
    samples: int | None = None
    seed: int = 0


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        UsageError: the file is missing, not YAML, or holds a key or value that is not known.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"recipe '{path}': expected a YAML file, found {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"recipe '{path}': expected a mapping with 'passes', found {content!r}")
    known = {f.name: f for f in dataclasses.fields(Recipe)}
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name == "obert_compiler":
            continue
        if name not in known:
            raise UsageError(
                f"recipe '{path}': key '{key}' is unknown; expected {', '.join(sorted(known))}"
            )
        values[name] = _passes(value, path) if name == "passes" else value
    _check_types(values, path)
    return Recipe(**values)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write ``recipe`` as YAML that `read_recipe` reads back."""
    content: dict[str, Any] = {"obert_compiler": obert_compiler.__version__}
    for f in dataclasses.fields(Recipe):
        value = getattr(recipe, f.name)
        if value != f.default:
            content[f.name] = list(value) if isinstance(value, tuple) else value
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _passes(value: object, path: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(value.split(",")) if value != "none" else ()
    if not isinstance(value, list):
        raise UsageError(f"recipe '{path}': 'passes' is expected to be a list, found {value!r}")
    return tuple(_pass_text(item, path) for item in value)


def _pass_text(item: object, path: Path) -> str:
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and len(item) == 1:
        ((name, options),) = item.items()
        if options is None or isinstance(options, dict):
            texts = [f"{key}={_option_text(value)}" for key, value in (options or {}).items()]
            return ":".join([str(name), *texts])
    raise UsageError(
        f"recipe '{path}': a pass is expected as text or as 'name: {{option: value}}', "
        f"found {item!r}"
    )


def _option_text(value: object) -> str:
    if isinstance(value, list):
        return "+".join(_option_text(v) for v in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _check_types(values: dict[str, Any], path: Path) -> None:
    for key, value in values.items():
        whole = key in {"seq_len", "samples", "seed"}
        if value is None or key == "passes":
            continue
        if isinstance(value, bool) or not isinstance(value, int if whole else str):
            expected = "a whole number" if whole else "a text"
            raise UsageError(
                f"recipe '{path}': '{key}' is expected to be {expected}, found {value!r}"
            )
