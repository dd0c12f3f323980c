"""Write a job's files, and lint them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from mconv.errors import ConfigError, MconvError, refuse

SCRIPTS = (".sh", ".sbatch")


def write(folder: Path, files: Mapping[str, str], *, overwrite: bool) -> None:
    """Write files, each whole or not at all. Raises ConfigError where another text is there, unless `overwrite`."""
    changed = {name: text for name, text in files.items() if _read(folder / name) != text}
    there = [name for name in changed if (folder / name).exists()]
    if there and not overwrite:
        raise ConfigError(
            f"{folder} holds another {', '.join(there)}; replace it with --overwrite, or name another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in changed.items():
            part = folder / f".{name}.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            part.chmod(0o755 if name.endswith(SCRIPTS) else 0o644)
            part.replace(folder / name)
    except OSError as error:
        raise MconvError(f"{folder} cannot be written to: {error.strerror}; name another folder") from error


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


# ---- lint ------------------------------------------------------------------------------------------------------------
def linter() -> list[str]:
    """Return the command that lints a script on standard input: shellcheck if it is installed, else bash's parser."""
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    return [found, "--shell=bash", "--severity=error", "-"] if found else ["bash", "-n"]


def check(files: Mapping[str, str]) -> None:
    """Lint each script. Raises MconvError with what the linter says."""
    refuse(list(_faults(files)), doing="linting the rendered files", kind=MconvError)


def _faults(files: Mapping[str, str]) -> Iterator[str]:
    for name, text in files.items():
        if name.endswith(SCRIPTS):
            done = subprocess.run(linter(), input=text, capture_output=True, text=True)
            if done.returncode:
                yield f"{name}: {(done.stdout + done.stderr).strip()}"
