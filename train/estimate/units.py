"""Numbers as people say them."""

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400


def duration(seconds: float) -> str:
    """Return a time in the two units that matter: 45 s, 24 min, 2 h 24 min, 3.2 days, 11 years."""
    if seconds < MINUTE:
        return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
    if seconds < HOUR:
        return f"{min(seconds / MINUTE, 59):.0f} min"
    if seconds < DAY:
        hours, minutes = divmod(min(round(seconds / MINUTE), 24 * 60 - 1), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if seconds < YEAR:
        return f"{seconds / DAY:.1f} days"
    years = seconds / YEAR
    return f"{years:.1f} years" if years < 10 else f"{years:,.0f} years"
