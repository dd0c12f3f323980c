"""Time limits as Slurm writes them."""

import re

FORM = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d\d?))?(?::(\d\d?))?", re.ASCII)


def seconds(text: str) -> int | None:
    """Return the seconds of a limit: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; None for another text."""
    if (found := FORM.fullmatch(text)) is None:
        return None
    days, *rest = found.groups()
    numbers = [int(one) for one in rest if one is not None]
    if days is not None:
        hours, minutes, left = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, left = numbers
    else:
        hours, (minutes, left) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + left


def written(total: int) -> str:
    """Return seconds as HH:MM:SS."""
    minutes, left = divmod(total, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{left:02}"
