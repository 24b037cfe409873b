"""Stops a training at the first value that is not finite, and says where it arose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from obert_compiler.errors import NumericsError

__all__ = ["check_gradients", "check_loss"]

_REMEDY = "the last checkpoint is kept; lower learning_rate, or set precision=float32"


def check_loss(
    loss: torch.Tensor, module: torch.nn.Module, feed: Mapping[str, Any], where: str
) -> None:
    """Check that a loss is finite.

    Args:
        loss: scalar.
        module: what computed it.
        feed: inputs of the module, to look for the site where it went wrong.
        where: names training and step.

    Raises:
        NumericsError: it is not; names the first Linear site whose output is not finite.
    """
    if bool(torch.isfinite(loss)):
        return
    _fail(where, f"a loss of {loss.item():g}", _first_output(module, feed))


def check_gradients(norm: Any, module: torch.nn.Module, where: str) -> None:
    """Check that the norm of the gradients is finite.

    Raises:
        NumericsError: it is not; names the last parameter in the order of the module whose gradient
            is not finite, which backward reaches first.
    """
    if norm is None or bool(torch.isfinite(torch.as_tensor(norm))):
        return
    names = [
        name
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    site = f"the gradient of '{names[-1]}'" if names else "no gradient alone, but their norm"
    _fail(where, f"a gradient norm of {float(norm):g}", site)


def _fail(where: str, found: str, site: str) -> NoReturn:
    raise NumericsError(
        f"{where}: expected finite numbers, found {found}; first not finite: {site}; {_REMEDY}"
    )


def _first_output(module: torch.nn.Module, feed: Mapping[str, Any]) -> str:
    """The first Linear site of the forward pass with an output that is not finite."""
    found: list[str] = []
    sites = getattr(module, "linear_sites", {})
    with _watched(sites, found), torch.no_grad():
        module(**feed)
    if found:
        return f"the output of site '{found[0]}'"
    return "the loss itself, after the last site"


@contextmanager
def _watched(sites: Mapping[str, torch.nn.Module], found: list[str]) -> Iterator[None]:
    def hook(name: str) -> Any:
        def after(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            if not bool(torch.isfinite(output).all()):
                found.append(name)

        return after

    handles = [module.register_forward_hook(hook(name)) for name, module in sites.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
