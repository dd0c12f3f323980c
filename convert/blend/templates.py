"""The chat template that a recipe asks for: one that it writes itself, or that of most models."""

from collections import Counter
from collections.abc import Sequence

from mconv.convert.folders import tokens
from mconv.convert.formats.jsonfile import read_json
from mconv.errors import ConfigError

FILE = "chat_template.jinja"
SHORTEST = 20
"""Characters of the shortest template that mergekit takes."""


def template_of(asked: str | None, tokenizers: Sequence[tokens.Files]) -> str | None:
    """Return a chat template, None if none is asked for or no model has one. Raises ConfigError on a template's name."""
    if asked is None:
        return None
    if asked == "auto":
        found = [one.strip() for files in tokenizers if (one := _own(files))]
        return Counter(found).most_common(1)[0][0] if found else None
    if len(asked) < SHORTEST or "{" not in asked:
        raise ConfigError(
            f"chat_template: {asked[:60]!r} is neither `auto` nor a template; those that mergekit has by name are not "
            "here: write the template itself, or give --tokenizer a folder whose tokenizer has it"
        )
    return asked


def _own(files: tokens.Files) -> str | None:
    """Return the template of a tokenizer: of several the default."""
    if FILE in files:
        return files[FILE].read_text(encoding="utf-8")
    found = read_json(files[tokens.CONFIG]).get("chat_template") if tokens.CONFIG in files else None
    if isinstance(found, list):
        found = next(
            (one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None
        )
    return found if isinstance(found, str) else None
