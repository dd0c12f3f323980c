"""Read small JSON files of unknown origin. Imports nothing heavy: who only looks around waits for nothing."""

import json
from pathlib import Path
from typing import Any

from mconv.errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises FormatError with the file's name if it is missing, damaged or no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{path}: a JSON object was expected, not {type(value).__name__}")
    return value
