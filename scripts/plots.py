"""The plots of the benchmarks: how a cost grows with something, one curve to a picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """What was measured (`points`: x → y), and what the axes are called."""

    x_name: str
    y_name: str
    points: Mapping[int, float]


def draw(path: Path, title: str, curve: Curve) -> None:
    """Writes a picture (SVG). The horizontal axis is logarithmic, the vertical begins at zero."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and only plots need it

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(list(curve.points), list(curve.points.values()), marker="o")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.set_xlabel(curve.x_name)
    axes.set_ylabel(curve.y_name)
    axes.grid(visible=True, alpha=0.3)
    # Without a date: the same figures make the same file.
    figure.savefig(path, metadata={"Date": None})
