"""Numbers for people: decimal bytes for files, binary for memory, thousands with commas."""

from __future__ import annotations


def file_size(n_bytes: float) -> str:
    """`5.94 GB`, `812 GB`, `512 B`: decimal, three digits."""
    return _scaled(n_bytes, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def memory_size(n_bytes: float) -> str:
    """`0.81 GiB` down to a tenth of one, below that MiB: binary, as tools that show memory count."""
    if n_bytes >= 1 << 27:
        return f"{n_bytes / (1 << 30):.2f} GiB"
    return _scaled(n_bytes, 1024, ("B", "KiB", "MiB"))


def count(n: int) -> str:
    """`3,122`."""
    return f"{n:,}"


def counted(n: int, noun: str) -> str:
    """`1 key`, `3,122 keys`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """`8 s`, `2 min 5 s`, `1 h 12 min`."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004 -- seconds of a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 -- seconds of an hour
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    unit = 0
    while unit + 1 < len(units) and round(value) >= base:
        value, unit = value / base, unit + 1
    digits = 0 if unit == 0 else max(0, 3 - len(str(int(value))))
    return f"{value:.{digits}f} {units[unit]}"
