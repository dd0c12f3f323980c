"""The package's annotations, checked while it is tested: by beartype everywhere, with jaxtyping where axes are named."""

import dataclasses
import functools
import inspect
import types
import typing
from collections import Counter
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

PLAIN = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
"""What it raises is what jaxtyping raises: a TypeError, as the unchecked function might."""


CHECKED = 30
"""How many calls of a function whose axes are named are checked in one process: its millionth is its first again."""
calls: Counter[str] = Counter()
inner: set[types.CodeType] = set()


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
        if "<locals>" in what.__qualname__:  # made anew at each call of the function around it: its first is checked
            if what.__code__ in inner:
                return what
            inner.add(what.__code__)
        hints = what.__annotations__.values()  # quoted ones are for type checkers alone: beartype finds no such name
        if not any(map(_needs_jaxtyping, hints)):
            return PLAIN(what)
        return _at_first(what, jaxtyped(what, typechecker=typechecker))
    return what


def _at_first(plain: Any, checked: Any) -> Any:
    name = f"{plain.__module__}.{plain.__qualname__}"

    @functools.wraps(plain)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return (checked if calls[name] <= CHECKED else plain)(*args, **kwargs)

    return call


def _needs_jaxtyping(hint: Any) -> bool:
    """Whether an annotation, or what it is made of, names axes or is quoted."""
    if typing.get_origin(hint) is typing.Literal:
        return False
    if isinstance(hint, str | typing.ForwardRef) or getattr(hint, "__module__", None) == "jaxtyping":
        return True
    parts = hint if isinstance(hint, list) else typing.get_args(hint)  # the arguments of a Callable are a list
    return any(map(_needs_jaxtyping, parts))
