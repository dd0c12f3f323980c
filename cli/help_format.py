"""Help as plain text in filled lines: rich's Markdown alone would take a quarter of the time of `mconv --help`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions


class PlainHelp:
    """Formats help as cyclopts does, without a docstring's line breaks."""

    def __call__(self, console: "Console", options: "ConsoleOptions", panel: "HelpPanel") -> None:
        for entry in panel.entries:
            _fill(entry.description)
        _default()(console, options, panel)

    def render_usage(self, console: "Console", options: "ConsoleOptions", usage: Any) -> None:
        _default().render_usage(console, options, usage)

    def render_description(self, console: "Console", options: "ConsoleOptions", description: Any) -> None:
        _default().render_description(console, options, description)


def _default() -> Any:
    from cyclopts.help import DefaultFormatter

    return DefaultFormatter()


def _fill(description: Any) -> None:
    """Join the lines of an option's text."""
    from rich.text import Text

    text = getattr(description, "primary_renderable", None)
    if isinstance(text, Text):
        description.primary_renderable = Text(" ".join(text.plain.split()))
