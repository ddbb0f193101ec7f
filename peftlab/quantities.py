"""Numbers as text for people: counts, bytes, shares, seconds, metrics."""

from __future__ import annotations


def format_share(share: float) -> str:
    return f"{100 * share:.3g} %" if share < 1 else "100 %"


def format_change(share: float, decimals: int = 1) -> str:
    """Return a relative change in per cent with its sign, +1.3%; one that rounds to zero is +0.0%."""
    return f"{round(100 * share, decimals) + 0.0:+.{decimals}f}%"


def format_bytes(count: float) -> str:
    """Return bytes in the largest binary unit that they fill: `23.4 GiB`."""
    for exponent, unit, decimals in ((4, "TiB", 2), (3, "GiB", 1), (2, "MiB", 1), (1, "KiB", 1)):
        if abs(count) >= 1024**exponent:
            return f"{count / 1024**exponent:.{decimals}f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}"


def format_metric(value: float | None) -> str:
    """Return four decimals, or of a number that they would hide three digits: `0.3452`, `3.45e-06`."""
    return "-" if value is None else f"{value:.4f}" if abs(value) >= 1e-3 or not value else f"{value:.3g}"


def number(count: int, noun: str) -> str:
    """Return a count of things: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_count(count: float) -> str:
    """Return a count with three significant digits: 12.3M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"
