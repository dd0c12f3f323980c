"""The errors that a user can cause and mend. `cli/` turns each into one message and an exit code."""


class MconvError(ValueError):
    """Bad input: says which file, tensor, axis or key, and what to do. Exit code 2."""

    exit_code = 2
    told = False
    """Whether every rank knows of it already, where there are several."""


class ConfigError(MconvError):
    """A config key or value that no table claims, or that two places contradict."""


class AmbiguousCheckpoint(ConfigError):
    """A fact that a checkpoint does not state, or not reliably: the user must give it, or another checkpoint can."""


class LayoutError(MconvError):
    """A tensor that the wanted layout cannot cut evenly, or layers that it cannot stage."""


class FormatError(MconvError):
    """A file that is missing, truncated, of another format, or not to be trusted."""


class CopiesDiffer(FormatError):
    """Copies of one tensor in a checkpoint that are not the same bits: ranks that disagree, or a tied head."""


class DiskFull(MconvError):
    """No room is left where something is written, or a quota is used up."""


class CheckFailed(MconvError):
    """A check ran to its end and the answer is no: the checkpoint is wrong. Exit code 1."""

    exit_code = 1


def refuse(problems: list[str], *, doing: str, kind: type[MconvError] = MconvError, limit: int = 20) -> None:
    """Raise one `kind` that lists all of `problems` (the first `limit` in full); return if there are none."""
    if not problems:
        return
    shown = problems[:limit] + ([f"... and {len(problems) - limit} more"] if len(problems) > limit else [])
    raise kind(problems[0] if len(problems) == 1 else "\n  - ".join([f"{doing}: {len(problems)} problems", *shown]))
