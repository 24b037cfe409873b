"""The options of ``prune``, what they come to, and those that are texts: ``2of4``, ``a@0.8``.

Apart from the pass, so that they can be read, checked and resolved without a graph.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from obert_compiler.errors import UsageError
from obert_compiler.passes.fisher_matrix import BlockChoice
from obert_compiler.pipeline.contract import Pass

__all__ = [
    "Choice",
    "PruneOptions",
    "check_at_least",
    "check_one_of",
    "check_positive",
    "check_sparsity",
    "read_nm",
    "read_override",
    "read_steps",
]


_DEFAULT_SPARSITY = 0.5
_LEAST_DENSITY = 1e-3
"""Stands for the density 0 in the logarithms of steps."""
Choice = Literal["auto", "rows", "single", "greedy", "cumulative"]


@dataclass(frozen=True)
class PruneOptions(Pass):
    """Base of ``prune``.

    Attributes:
        sparsity: share of groups to remove over all sites that are pruned, 0 to 1; reached exactly,
            as the largest whole number of groups. 0.5 when neither it nor ``nm`` is given.
        block: weights per group, consecutive inputs of one output; 1 is unstructured.
        method: how groups are ranked: ``fisher`` (second-order information) or ``magnitude``.
        choice: which groups go. ``rows``: as many of each matrix as a ranking by the Fisher would
            take, but those that the least squares of their rows miss least, decided where the
            repair of the matrix begins and weighted by the Fisher of its outputs. The others are
            rankings: ``single`` (what a group costs alone, as published), ``greedy`` (the groups
            of a Fisher block go one after another, the others repaired in between; the largest
            increase of the loss up to its turn), ``cumulative`` (the sum of the increases).
            ``auto`` takes ``rows`` with ``repair=rows`` and ``method=fisher``, else ``single``.
        turns: of ``choice=rows``: a matrix loses its groups in that many turns, each about the same
            share of what is left, and what the others are worth is computed anew in between.
        repair: how the remaining weights make up for the removed ones: ``rows`` (least squares over
            whole rows, layer by layer, needs data), ``fisher`` (inside Fisher blocks), ``sum``
            (there, as published: the updates of the groups added up), ``none``; ``auto`` takes
            ``rows`` for the method ``fisher`` and ``none`` for ``magnitude``.
        steps: sparsities on the way to the target, with ``repair=rows``. At each, the Fisher of the
            model as repaired so far counts, and choice (by ``rows``) and repair start anew from the
            dense weights. Those that are not below the target are not taken. One whole number is
            how many steps to take, each removing the same share of what is left; 1 goes there at
            once.
        nm: ``NofM`` keeps at most N weights of every M consecutive inputs, as in ``2of4``.
        scope: one ranking over all sites (``global``) or the same sparsity in each (``uniform``).
        override: ``PATTERN@SPARSITY`` for the sites that match, which leave the global ranking; the
            last one that matches counts.
        include: patterns of sites to prune instead of those in encoder layers.
        exclude: patterns of sites to leave alone.
        damping: what is added to the diagonal of every Fisher block, as a share of the mean
            diagonal over all sites. One number for all of them keeps their saliencies comparable
            where gradients are too small to tell weights apart.
        absolute_damping: the same as a number, in place of ``damping``; the paper has 1e-7.
        samples: examples for the ``fisher`` pass that is inserted when none was asked for, and for
            every later step.
        repair_samples: examples for ``repair=rows``, at most.
        repair_positions: positions (tokens) for each input of the widest matrix that are enough for
            ``repair=rows``; no more examples are taken than have them.
        repair_damping: ridge of ``repair=rows`` towards the dense weights, as a share of the mean
            diagonal of ``X^T X`` of each site.
        repair_head: with ``repair=rows``, bring pooler and head, which keep all their weights, to
            the outputs of the dense ones as well; ``exclude`` leaves them out.
        memory: bound in GB (10^9 bytes) on the activations that ``repair=rows`` keeps between
            layers; the rest goes to temporary files. The moments of a site come on top.
    """

    sparsity: float | None = None
    block: int = 4
    method: Literal["fisher", "magnitude"] = "fisher"
    nm: str | None = None
    scope: Literal["global", "uniform"] = "global"
    override: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    damping: float = 2e-2
    absolute_damping: float | None = None
    choice: Choice = "auto"
    turns: int = 4
    repair: Literal["auto", "rows", "fisher", "sum", "none"] = "auto"
    steps: tuple[str, ...] = ("0.5", "0.7", "0.8", "0.85", "0.9", "0.95")
    samples: int = 1024
    repair_samples: int = 4096
    repair_positions: int = 16
    repair_damping: float = 1e-3
    repair_head: bool = True
    memory: float = 4.0

    def __post_init__(self) -> None:
        check_one_of("method", self.method, "fisher", "magnitude")
        check_one_of("choice", self.choice, *get_args(Choice))
        check_one_of("repair", self.repair, "auto", "rows", "fisher", "sum", "none")
        check_one_of("scope", self.scope, "global", "uniform")
        if self.repair in {"fisher", "sum"} and self.method != "fisher":
            raise UsageError(
                f"prune: expected method=fisher for repair={self.repair}, found magnitude"
            )
        if self.choice not in {"auto", "single"} and self.method != "fisher":
            raise UsageError(
                f"prune: expected method=fisher for choice={self.choice}, found magnitude"
            )
        if self.choice == "rows" and self.repaired_by != "rows":
            raise UsageError(
                f"prune: expected repair=rows for choice=rows, found {self.repaired_by}"
            )
        for name in ("turns", "block", "samples", "repair_samples", "repair_positions"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("damping", "absolute_damping", "repair_damping", "memory"):
            check_positive(name, getattr(self, name))
        if self.sparsity is not None:
            check_sparsity("sparsity", self.sparsity)
        read_steps(self.steps)
        for item in self.override:
            read_override(item)
        if self.nm is not None:
            self._check_nm(*read_nm(self.nm))

    def _check_nm(self, n: int, m: int) -> None:
        if self.choice in {"greedy", "cumulative"}:
            raise UsageError(
                f"prune: expected choice=rows or single beside nm={self.nm}, which has no order "
                f"across its groups, found {self.choice}"
            )
        if self.override or self.scope != "global":
            raise UsageError("prune: expected nm alone, found it with override or scope; drop one")
        if self.block not in {type(self).block, 1}:
            raise UsageError(f"prune: expected nm or block, found nm={self.nm} and {self.block}")
        if self.sparsity is not None and self.sparsity != 1 - n / m:
            raise UsageError(
                f"prune: expected no sparsity beside nm={self.nm}, which gives {1 - n / m:g}, "
                f"found {self.sparsity}"
            )

    @property
    def group(self) -> int:
        """Weights that are chosen together."""
        return self.block if self.nm is None else 1

    @property
    def span(self) -> int:
        """Consecutive inputs that must divide a row: a group, or the M of N:M."""
        return self.block if self.nm is None else read_nm(self.nm)[1]

    @property
    def target(self) -> float:
        """Share of groups to remove; of N:M what it comes to."""
        if self.nm is not None:
            n, m = read_nm(self.nm)
            return 1 - n / m
        return _DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    @property
    def repaired_by(self) -> Literal["rows", "fisher", "sum", "none"]:
        """`repair`, with ``auto`` resolved."""
        if self.repair == "auto":
            return "rows" if self.method == "fisher" else "none"
        return self.repair

    @property
    def chosen_by(self) -> Choice:
        """`choice`, with ``auto`` resolved."""
        if self.choice == "auto":
            return "rows" if self.repaired_by == "rows" and self.method == "fisher" else "single"
        return self.choice

    @property
    def ranking(self) -> BlockChoice:
        """What the ranking by the Fisher goes by."""
        match self.choice:
            case "greedy" | "cumulative" as ranking:
                return ranking
            case _:
                return "single"

    @property
    def ways(self) -> tuple[float, ...]:
        """The steps as shares of the way to the target, the last one 1."""
        if self.repaired_by != "rows" or self.nm is not None or self.target == 0:
            return (1.0,)
        steps = read_steps(self.steps)
        if isinstance(steps, int):
            return tuple(number / steps for number in range(1, steps + 1))
        whole = math.log(max(1 - self.target, _LEAST_DENSITY))
        below = sorted({s for s in steps if s < self.target})
        return (*(min(1.0, math.log(1 - s) / whole) for s in below), 1.0)


def check_one_of(what: str, value: str, *allowed: str) -> None:
    """Check that ``value`` is one of ``allowed``.

    Raises:
        UsageError: it is not.
    """
    if value not in allowed:
        names = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
        raise UsageError(f"prune: expected {what} {names}, found '{value}'")


def check_at_least(what: str, value: int, least: int) -> None:
    """Check that ``value`` is not below ``least``.

    Raises:
        UsageError: it is.
    """
    if value < least:
        raise UsageError(f"prune: expected {what} of at least {least}, found {value}")


def check_positive(what: str, value: float | None) -> None:
    """Check that ``value``, where it is given, is a number above 0.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not (0 < value < math.inf):
        raise UsageError(f"prune: expected {what} above 0, found {value}")


def check_sparsity(what: str, value: float) -> None:
    """Check that ``value`` lies in 0..1.

    Raises:
        UsageError: it does not.
    """
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"prune: expected {what} between 0 and 1, found {value}")


def read_steps(steps: tuple[str, ...]) -> int | tuple[float, ...]:
    """Number of steps, where ``steps`` is one whole number, or else the sparsities on the way.

    Raises:
        UsageError: neither.
    """
    if len(steps) == 1 and steps[0].isdecimal() and int(steps[0]) >= 1:
        return int(steps[0])
    return tuple(_step(text) for text in steps)


def _step(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise UsageError(
            "prune: expected steps as a number of them or as sparsities above 0 and up to 1, as in "
            f"0.5+0.7, found '{text}'"
        )
    return value


def read_override(item: str) -> tuple[str, float]:
    """Pattern and sparsity of ``PATTERN@SPARSITY``.

    Raises:
        UsageError: another form, or a sparsity outside 0..1.
    """
    pattern, at, number = item.rpartition("@")
    try:
        sparsity = float(number)
    except ValueError:
        at = ""
        sparsity = 0.0
    if not at or not pattern:
        raise UsageError(
            f"prune: expected override as PATTERN@SPARSITY, as in intermediate@0.8, found '{item}'"
        )
    check_sparsity(f"the sparsity of override '{item}'", sparsity)
    return pattern, sparsity


def read_nm(text: str) -> tuple[int, int]:
    """N and M of ``NofM``.

    Raises:
        UsageError: another form, or N above M.
    """
    match = re.fullmatch(r"(\d+)of(\d+)", text)
    if match is None:
        raise UsageError(f"prune: expected nm as NofM, as in 2of4, found '{text}'")
    n, m = int(match[1]), int(match[2])
    if n > m or m < 1:
        raise UsageError(f"prune: expected nm to keep at most all, N <= M, found {n} of {m}")
    return n, m
