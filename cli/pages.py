"""Pages of HTML that commands write: where one may be written, and how it is filled in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mconv.errors import MconvError


def generator(command: str) -> str:
    """Return the tag that tells a page of a command from a file that is not to be replaced."""
    return f'<meta name="generator" content="{command}">'


def check(file: Path, command: str, otherwise: str = "") -> None:
    """Refuse a page's path where it cannot be written, or where something else is. Raises MconvError."""
    if file.suffix.lower() not in (".html", ".htm"):
        raise MconvError(f"--html {file}: give a name that ends in .html{otherwise}")
    if file.is_file():
        with file.open("rb") as opened:
            if generator(command).encode() not in opened.read(1024):
                raise MconvError(f"--html {file} exists and is not a page of {command}; choose another file")
    check_place(file, "--html")


def check_place(file: Path, option: str) -> None:
    """Refuse a path of which the folder is not there, or that is a folder itself. Raises MconvError."""
    if not file.parent.is_dir():
        raise MconvError(f"{option} {file}: {file.parent} is no folder; make it, or choose another")
    if file.is_dir():
        raise MconvError(f"{option} {file} is a folder; name a file in it")


def filled(name: str, command: str, filters: dict[str, Callable[..., Any]], **values: Any) -> str:
    """Return the template of a command's page filled in."""
    return rendered(name, filters, generator=generator(command), **values)


def rendered(name: str, filters: dict[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Return the template `name`.html.jinja filled in. Values are escaped, and may hold bytes that are no text."""
    from jinja2 import Environment, StrictUndefined

    from mconv.verify.page import UNPRINTABLE

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters or {}
    template = environment.from_string(Path(__file__).with_name(f"{name}.html.jinja").read_text(encoding="utf-8"))
    return template.render(**values).translate(UNPRINTABLE).encode("utf-8", "backslashreplace").decode("utf-8")
