"""What a benchmark says: figures, each with its ratio to something measured beside it, and whether
that meets the target.

Microseconds differ between machines and from minute to minute, ratios measured side by side hardly
do. So where a line has a ratio the target is about the ratio, else about the figure.
"""

import statistics
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table


class Figure(msgspec.Struct, rename={"passed": "pass"}):
    """One line. `target` and `passed` are None where a line only explains another."""

    name: str
    figure: float
    unit: str
    ratio: float | None = None
    target: float | None = None
    passed: bool | None = None


def at_most(figure: Figure, target: float) -> Figure:
    """The figure with a target that its ratio, or else it, must not exceed."""
    figure.target, figure.passed = target, _judged(figure) <= target
    return figure


def at_least(figure: Figure, target: float) -> Figure:
    """The figure with a target that its ratio, or else it, must reach."""
    figure.target, figure.passed = target, _judged(figure) >= target
    return figure


def median_ratio(left: Sequence[float], right: Sequence[float]) -> float:
    """The median of the ratios of neighbours: what was measured in the same round."""
    return statistics.median(one / other for one, other in zip(left, right, strict=True))


def print_table(figures: Sequence[Figure]) -> None:
    """All lines, those with a target with their verdict."""
    table = Table(caption="the target is about the ratio, where there is one")
    for heading in ("", "figure", "unit", "ratio", "target", ""):
        table.add_column(heading, justify="left" if heading in {"", "unit"} else "right")
    for line in figures:
        verdict = "" if line.passed is None else "met" if line.passed else "MISSED"
        ratio, target = _shown(line.ratio), _shown(line.target)
        table.add_row(line.name, _shown(line.figure), line.unit, ratio, target, verdict)
    Console(width=140).print(table)


def _judged(figure: Figure) -> float:
    return figure.figure if figure.ratio is None else figure.ratio


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
