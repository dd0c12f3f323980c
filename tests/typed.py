"""The package's annotations, checked while it is tested: by beartype everywhere, with jaxtyping where axes are named."""

import dataclasses
import functools
import inspect
import typing
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

PLAIN = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
"""What it raises is what jaxtyping raises: a TypeError, as the unchecked function might."""


def lighten() -> None:
    """Before the package is imported: what names no axes goes without jaxtyping's record of them around each call.

    beartype checks the same annotations there. The record costs a conversion three times its own work.
    """
    jaxtyping.jaxtyped = functools.partial(_checked, jaxtyping.jaxtyped)


def _checked(jaxtyped: Any, what: Any = None, *, typechecker: Any) -> Any:
    """The decorator that jaxtyping's import hook puts on each function and class."""
    if what is None:
        return functools.partial(_checked, jaxtyped, typechecker=typechecker)
    if dataclasses.is_dataclass(what) and "__init__" in vars(what):
        what.__init__ = _checked(jaxtyped, what.__init__, typechecker=typechecker)
    if inspect.isfunction(what):
        quoted = any(
            map(_is_quoted, what.__annotations__.values())
        )  # for type checkers alone: beartype finds no such name
        return jaxtyped(what, typechecker=typechecker) if quoted or _has_axes(what) else PLAIN(what)
    return what


def _has_axes(function: Any) -> bool:
    """Whether its module has anything of jaxtyping's by name."""
    return any(getattr(value, "__module__", None) == "jaxtyping" for value in function.__globals__.values())


def _is_quoted(hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return False
    return isinstance(hint, str | typing.ForwardRef) or any(map(_is_quoted, typing.get_args(hint)))
