"""ONNX Runtime as it is on a processor with AVX2 and nothing newer, on a newer one.

ONNX Runtime has no option for that: it asks the processor. A copy of the installed package gets
an undefined instruction in place of each that asks (``cpuid``, ``xgetbv``), and a small library,
loaded before it, answers. Clock, caches and ports are the newer processor's; the kernels are those
of the older. Linux on x86-64, with ``objdump`` and a C compiler.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
from pathlib import Path

ASK = {"cpuid": (b"\x0f\xa2", b"\x0f\x0b"), "xgetbv": (b"\x0f\x01\xd0", b"\x0f\x0b\x90")}


def environment(folder: Path) -> dict[str, str]:
    """Variables for a process that shall see no more than AVX2; ``folder`` holds what they name.

    Raises:
        SystemExit: a tool or ONNX Runtime is missing, or nothing in it asks the processor.
    """
    for tool, package in (("objdump", "binutils"), ("cc", "a C compiler")):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool}: expected on the PATH, found nothing; install {package}")
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise SystemExit("onnxruntime: expected an installed package, found none; pip install it")
    copy = folder / "onnxruntime"
    shutil.copytree(Path(spec.origin).parent, copy)
    count = sum(_replace(file) for file in copy.glob("capi/onnxruntime_pybind11_state*.so"))
    if not count:
        raise SystemExit(f"{spec.origin}: expected cpuid instructions of x86-64, found none")
    library = folder / "hide_avx512.so"
    source = Path(__file__).with_name("hide_avx512.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    return {"LD_PRELOAD": str(library), "PYTHONPATH": str(folder), "OBERT_FORCE_ISA": "avx2"}


def _replace(file: Path) -> int:
    """Replace what asks the processor; how many did."""
    code = bytearray(file.read_bytes())
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", file], capture_output=True, text=True, check=True
    )
    found = re.findall(r"^\s*([0-9a-f]+):\s+(cpuid|xgetbv)\s*$", listing.stdout, re.MULTILINE)
    for address, name in found:
        before, after = ASK[name]
        at = _place(code, int(address, 16))
        if code[at : at + len(before)] != before:
            raise SystemExit(f"{file} at {at}: expected {name}, found something else")
        code[at : at + len(before)] = after
    file.write_bytes(code)
    return len(found)


def _place(code: bytearray, address: int) -> int:
    """Where in an ELF file lies what is loaded at ``address``."""
    (headers,) = struct.unpack_from("<Q", code, 32)
    (count,) = struct.unpack_from("<H", code, 56)
    for i in range(count):
        kind, _, offset, start, _, size, _, _ = struct.unpack_from(
            "<IIQQQQQQ", code, headers + 56 * i
        )
        if kind == 1 and start <= address < start + size:
            return int(offset + address - start)
    raise SystemExit(f"address {address:#x}: expected in a loaded segment, found in none")
