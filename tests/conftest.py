"""Tiny models for every test: random weights, a real tokenizer, lowered once and kept on disk.

An export takes seconds, so `tiny_folder` and `tiny_graph` keep what they made in pytest's cache
folder, under a key of the sources and versions that decide the result; xdist workers share it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import onnx_ir as ir
import pytest

from obert_compiler.graph import Graph, Source

# A busy machine is slow, not wrong: no example may fail for the time it took.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ARCHITECTURES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "electra",
    "mpnet",
    "albert",
    "deberta-v2",
    "deberta-v3",
    "modernbert",
    "gte",
    "nomic_bert",
    "jina_embeddings_v3",
    "eurobert",
    "mobilebert",
    "t5",
    "qwen3",
    "gemma3_text",
)
"""What `tiny_folder` and `tiny_graph` take as ``arch`` (MiniLM is ``bert``)."""

HEADS = ("sequence", "reranker", "token", "qa", "features", "embedding", "mlm")
"""What they take as ``head``; ``embedding`` is a sentence-transformers folder."""

TinyFolder = Callable[[str, str], Path]
TinyGraph = Callable[[str, str], Graph]

_ROOT = Path(__file__).parent.parent
_VERSIONS = tuple(
    importlib.metadata.version(name) for name in ("torch", "transformers", "onnx-ir", "onnxscript")
)
_AUTO_CLASS = {
    "sequence": "AutoModelForSequenceClassification",
    "reranker": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "qa": "AutoModelForQuestionAnswering",
    "features": "AutoModel",
    "embedding": "AutoModel",
    "mlm": "AutoModelForMaskedLM",
}
_NOT_DISTILBERT = {
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
}
_ROBERTA_LIKE = {"roberta", "xlm-roberta", "mpnet"}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 32}
_CONFIG: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "deberta-v2": {**_DEBERTA, "conv_kernel_size": 3, "type_vocab_size": 0},
    "deberta-v3": {
        **_DEBERTA,
        "position_biased_input": False,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 16,
        "type_vocab_size": 0,
    },
    "modernbert": {
        "global_attn_every_n_layers": 2,
        "local_attention": 16,
        "reference_compile": False,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
    "mobilebert": {
        "embedding_size": 32,
        "true_hidden_size": 16,
        "intra_bottleneck_size": 16,
        "num_feedforward_networks": 2,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "use_bidirectional_attention": True,
    },
    "eurobert": {
        "num_key_value_heads": 2,
        "mask_token_id": 4,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}


@pytest.fixture(scope="session")
def tiny_cache(request: pytest.FixtureRequest) -> Path:
    """The folder that keeps tiny models from run to run."""
    cache = getattr(request.config, "cache", None)
    if cache is None:
        tmp: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        return tmp.mktemp("tiny")
    folder: Path = cache.mkdir("tiny_models")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny_cache: Path) -> TinyFolder:
    """``tiny_folder(arch, head)``: a Hugging Face folder with random weights. Do not write to it.

    Three layers, hidden size 32, feed-forward size 64, four heads, biases and LayerNorm random too;
    config.json, model.safetensors and a tokenizer with its padding token.
    """
    key = _digest(Path(__file__))

    def make(arch: str, head: str) -> Path:
        folder = tiny_cache / f"{arch}-{head}-{key}"
        with _locked(folder):
            if not folder.is_dir():
                unfinished = folder.with_name(folder.name + ".new")
                shutil.rmtree(unfinished, ignore_errors=True)
                _write_folder(unfinished, arch, head)
                unfinished.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_graph(tiny_cache: Path, tiny_folder: TinyFolder) -> TinyGraph:
    """``tiny_graph(arch, head)``: the lowered tiny model, a fresh copy at each call."""
    key = _digest(Path(__file__), *sorted((_ROOT / "obert_compiler/frontends").glob("*.py")))
    kept: dict[tuple[str, str], Graph] = {}

    def make(arch: str, head: str) -> Graph:
        if (arch, head) not in kept:
            folder = tiny_folder(arch, head)
            file = tiny_cache / f"{arch}-{head}-{key}.onnx"
            with _locked(file):
                if not file.is_file():
                    for stale in tiny_cache.glob(f"{arch}-{head}-*.onnx*"):
                        stale.unlink(missing_ok=True)
                    _lower(folder, file)
            kept[arch, head] = _load(file, folder)
        return kept[arch, head].copy()

    return make


@pytest.fixture(scope="session", autouse=True)
def lowered_once(tiny_cache: Path, tiny_graph: TinyGraph) -> Iterator[None]:
    """Compiles of a tiny folder share its export, which takes longer than all else they do."""
    from obert_compiler.frontends import huggingface

    lower, kept = huggingface.lower_huggingface, dict[tuple[str, ...], Graph]()

    def lower_once(model: str | Path, **options: Any) -> Graph:
        folder = Path(model).resolve()
        if folder.parent != tiny_cache.resolve():
            return lower(model, **options)
        if not any(options.values()):
            arch, head, _ = folder.name.rsplit("-", 2)
            return tiny_graph(arch, head)
        key = (str(model), *map(str, sorted(options.items())))
        if key not in kept:
            kept[key] = lower(model, **options)
        return kept[key].copy()

    lower_once.anew = lower  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "lower_huggingface", lower_once)
        yield


def _lower(folder: Path, file: Path) -> None:
    from obert_compiler.frontends import huggingface

    lower = huggingface.lower_huggingface
    graph = getattr(lower, "anew", lower)(folder)
    fields = dataclasses.asdict(graph.source) | {"folder": None, "location": None}
    file.with_suffix(".json").write_text(json.dumps(fields))
    unfinished = file.with_name(file.name + ".new")
    ir.save(graph.model, unfinished)
    unfinished.rename(file)


def _load(file: Path, folder: Path) -> Graph:
    fields = json.loads(file.with_suffix(".json").read_text())
    fields |= {"folder": folder, "location": str(folder)}
    return Graph(ir.load(file), Source(**fields))


def _digest(*files: Path) -> str:
    parts = [repr(_VERSIONS).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(path.name.rsplit("-", 1)[0] + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_folder(folder: Path, arch: str, head: str) -> None:
    import torch
    import transformers

    special, vocabulary = _write_tokenizer(folder, arch)
    labels = {"sequence": ["NEGATIVE", "POSITIVE"], "reranker": ["LABEL_0"]}.get(
        head, ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"] if head == "token" else ["0", "1"]
    )
    options: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 130,
        "pad_token_id": special["pad_token"],
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    options |= _CONFIG.get(arch, {})
    if arch == "distilbert":
        options = {name: o for name, o in options.items() if name not in _NOT_DISTILBERT}
    model_type = "deberta-v2" if arch == "deberta-v3" else arch
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    config = transformers.AutoConfig.for_model(model_type, **options)
    torch.manual_seed(sum(map(ord, arch + head)))
    auto = "AutoModelForTextEncoding" if model_type == "t5" else _AUTO_CLASS[head]
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Larger than the usual 0.02, so that every layer shows in the outputs.
            noise = torch.randn_like(parameter) * (0.25 if parameter.ndim > 1 else 0.1)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_scale else noise)
    model.save_pretrained(folder)
    if head == "embedding":
        _write_sentence_transformers(folder)


def _write_sentence_transformers(folder: Path) -> None:
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 64, "do_lower_case": False})
    )
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


_TEXT = (
    "the a an of to in on at with and or but not very this that it is was were he she they we you "
    "film movie story actor plot scene music book city river london paris anna john maria peter "
    "good bad great terrible dull funny sad bright slow fast new old long short happy boring fine "
    "likes hates plays sings writes reads walks lives works eats question answer who where when "
    "what why how many people house garden dog cat bird tree water fire road day night year time"
)


def _write_tokenizer(folder: Path, arch: str) -> tuple[dict[str, int], int]:
    """Write a WordPiece or byte-level BPE tokenizer; returns ids of special tokens and the size."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.pre_tokenizers import ByteLevel

    if arch in _ROBERTA_LIKE:
        names = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}
    else:
        names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = list(names.values())
    if arch in {"roberta", "xlm-roberta", "modernbert"}:
        tokens += sorted(ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        tokens += [*".,!?'-", *letters, *(f"##{letter}" for letter in letters), *_TEXT.split()]
        tokens = list(dict.fromkeys(tokens))
        vocabulary = {token: i for i, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=names["unk"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
    cls, sep = names["cls"], names["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, tokens.index(cls)), (sep, tokens.index(sep))],
    )
    tokenizer.add_special_tokens(list(names.values()))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {f"{kind}_token": name for kind, name in names.items()}
    has_types = arch in {"bert", "electra", "albert"}
    inputs = ["input_ids", *(["token_type_ids"] if has_types else []), "attention_mask"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 128,
        "model_input_names": inputs,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return {kind: tokens.index(name) for kind, name in special.items()}, len(tokens)
