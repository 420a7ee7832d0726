"""Rules that do not take all day: every minute of a window or of a `for` becomes a second."""

from __future__ import annotations

import re

_SECONDS = {"m": 1, "h": 60}


def hastened(rules: str) -> str:
    """Names and thresholds stay."""

    def seconds(match: re.Match[str]) -> str:
        return f"{int(match[1]) * _SECONDS[match[2]]}s"

    windows = re.sub(r"(?<=\[)(\d+)([mh])(?=\])", seconds, rules)
    return re.sub(r"(?<=for: )(\d+)([mh])$", seconds, windows, flags=re.MULTILINE)
