"""The engine: our execution provider, a shared library that ONNX Runtime loads.

The library is registered with ONNX Runtime once in a process, when the first session asks for it.
Where it cannot be used, `engine_absence` says why.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obert_compiler
from obert_compiler.errors import FailureError

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "LIBRARY",
    "PROVIDER",
    "Claims",
    "EngineDescription",
    "Left",
    "add_engine",
    "describe_engine",
    "engine_absence",
    "engine_device",
    "engine_library",
    "leave_packed",
    "no_library",
    "read_claims",
    "report_file",
]

PROVIDER = "ObertExecutionProvider"
"""What ONNX Runtime calls the engine."""

LIBRARY = "libobert_engine.so"

_OLDEST = (1, 23)
_NO_LIBRARY = (
    f"this installation has no {LIBRARY}, it was made without a C++17 compiler or for another "
    "platform than Linux; install g++, then obert-compiler again"
)
_lock = threading.Lock()
_registered: tuple[Any, str] | None = None
"""Its device and the empty text, or None and why there is none; None until the first question."""


@dataclass(frozen=True)
class Left:
    """A node that the engine left to ONNX Runtime.

    Attributes:
        value: name of its result.
        op: its operator.
        reason: why.
    """

    value: str
    op: str
    reason: str


@dataclass(frozen=True)
class Claims:
    """What the engine took of a graph.

    Attributes:
        isa: the instruction set that its kernels use.
        nodes: nodes of the graph, after ONNX Runtime's first optimisation.
        claimed: how many of them the engine computes.
        parts: fused nodes that they became.
        left: products, softmaxes and normalisations that stay with ONNX Runtime.
    """

    isa: str
    nodes: int
    claimed: int
    parts: int
    left: tuple[Left, ...]

    @property
    def wants_folding(self) -> bool:
        """Whether something is left that is computed of constants alone, at every call.

        A packed matrix that the engine does not take, or a product of constants: fold them first.
        """
        return any(left.reason.endswith("fold constants first") for left in self.left)

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            "isa": self.isa,
            "nodes": self.nodes,
            "claimed": self.claimed,
            "parts": self.parts,
            "left": [vars(left).copy() for left in self.left],
        }

    def describe(self) -> list[str]:
        """Lines for people: what is claimed, then what is left, nodes of one reason together."""
        parts = f"{self.parts} part" + ("" if self.parts == 1 else "s")
        lines = [f"{self.claimed} of {self.nodes} nodes in the engine, {parts}, kernels {self.isa}"]
        alike: dict[tuple[str, str], list[str]] = {}
        for left in self.left:
            alike.setdefault((left.op, left.reason), []).append(left.value)
        for (op, reason), values in alike.items():
            named = f"'{values[0]}'" + (f" and {len(values) - 1} more" if values[1:] else "")
            lines.append(f"left to ONNX Runtime: {op} {named}: {reason}")
        return lines


@dataclass(frozen=True)
class EngineDescription:
    """The engine as it is found in this process.

    Attributes:
        path: the library; empty where somebody else registered it.
        version: the version that it reports; empty where ONNX Runtime does not pass it on.
        isa: the instruction set that its kernels use on this processor.
        onnxruntime: version of ONNX Runtime.
    """

    path: str
    version: str
    isa: str
    onnxruntime: str

    def to_dict(self) -> dict[str, str]:
        """The same, ready for JSON."""
        return vars(self).copy()


def engine_library() -> Path | None:
    """Where the library lies; None where this installation has none.

    ``OBERT_ENGINE_LIBRARY`` names another build of it. An editable installation keeps the library
    in site-packages and the sources in the checkout: both are on the path of the package.
    """
    chosen = os.environ.get("OBERT_ENGINE_LIBRARY")
    if chosen:
        return Path(chosen)
    for folder in obert_compiler.__path__:
        file = Path(folder) / "runtime" / LIBRARY
        if file.is_file():
            return file.resolve()
    return None


def engine_absence() -> str | None:
    """Why the engine cannot be used in this process; None where it can."""
    return _register()[1] or None


def engine_device() -> Any:
    """The engine's device of ONNX Runtime, for ``SessionOptions.add_provider_for_devices``.

    Raises:
        FailureError: the engine cannot be used.
    """
    device, reason = _register()
    if device is None:
        raise FailureError(
            f"engine: expected a library that ONNX Runtime loads, found none: {reason}"
        )
    return device


def no_library() -> FailureError:
    """The error for an installation without the library."""
    return FailureError(f"engine: expected the library of the engine, found none: {_NO_LIBRARY}")


def describe_engine() -> EngineDescription:
    """Load the engine, and ask it on a graph of one node.

    Raises:
        FailureError: the engine cannot be used.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    with report_file() as report:
        add_engine(options, 1, report)
        try:
            onnxruntime.InferenceSession(_one_product(), options, enable_fallback=0)
        except Exception as error:
            raise FailureError(
                "engine: expected it to open a session, found: "
                + str(error).splitlines()[0].rpartition("obert engine: ")[2]
            ) from error
        claims = read_claims(report)
    return EngineDescription(
        str(engine_library() or ""),
        engine_device().ep_metadata.get("version", ""),
        "" if claims is None else claims.isa,
        onnxruntime.__version__,
    )


def add_engine(
    options: onnxruntime.SessionOptions,
    threads: int,
    report: Path | None = None,
    *,
    unfolded: str = "claim",
) -> None:
    """Have sessions with ``options`` offer their graph to the engine first.

    Args:
        options: where to add it.
        threads: into how many pieces it cuts its work; the threads are ONNX Runtime's own.
        report: a file to which each session appends what it claims, for `read_claims`.
        unfolded: what becomes of a graph of which something is left that is computed of constants
            alone (`Claims.wants_folding`): ``claim`` the rest, or ``leave`` all of it.

    Raises:
        FailureError: the engine cannot be used.
    """
    settings = {"threads": str(threads), "unfolded": unfolded}
    if report is not None:
        settings["report"] = str(report)
    options.add_provider_for_devices([engine_device()], settings)


def leave_packed(options: onnxruntime.SessionOptions) -> None:
    """Have packed matrices reach the engine as they are stored, and not unpacked before.

    Opening takes less memory. What the engine leaves (`Claims.wants_folding`), ONNX Runtime
    computes at every call: open such a file without this.
    """
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")


@contextmanager
def report_file() -> Iterator[Path]:
    """An empty file for the ``report`` of `add_engine`, gone at the end."""
    number, name = tempfile.mkstemp(prefix="obert-", suffix=".jsonl")
    os.close(number)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def read_claims(report: Path) -> Claims | None:
    """What one session wrote into its report: a line for each graph, subgraphs too.

    None where ONNX Runtime never showed it a graph: nothing was left after constants were folded.
    """
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return None
    left = tuple(
        Left(skip["value"], skip["op"], skip["reason"]) for line in lines for skip in line["skips"]
    )
    nodes, claimed, parts = (sum(line[key] for line in lines) for key in _COUNTS)
    return Claims(lines[0]["isa"], nodes, claimed, parts, left)


_COUNTS = ("nodes", "claimed", "parts")


def _register() -> tuple[Any, str]:
    global _registered
    with _lock:
        if _registered is None:
            _registered = _found()
        return _registered


def _found() -> tuple[Any, str]:
    import onnxruntime

    version = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        return None, f"ONNX Runtime {version} loads no such library, 1.23.1 is the oldest that does"
    device = _device()
    if device is not None:  # registered by somebody else: a second time would make a second device
        return device, ""
    library = engine_library()
    if library is None:
        return None, _NO_LIBRARY
    try:
        onnxruntime.register_execution_provider_library(PROVIDER, str(library))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the reason
        return None, f"ONNX Runtime {version} refuses {library}: {str(error).splitlines()[0]}"
    device = _device()
    if device is None:
        return None, f"ONNX Runtime {version} offers no CPU device to {library}"
    return device, ""


def _device() -> Any:
    import onnxruntime

    return next((d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER), None)


def _one_product() -> bytes:
    """An ONNX file that multiplies [n, 1] by [1, 1]: enough for the engine to be asked."""
    import onnx_ir as ir

    text = (
        '<ir_version: 10, opset_import: ["": 21]>\n'
        "probe (float[n, 1] x, float[1, 1] w) => (float[n, 1] y) { y = MatMul(x, w) }"
    )
    payload: bytes = ir.to_proto(ir.from_onnx_text(text)).SerializeToString()
    return payload
