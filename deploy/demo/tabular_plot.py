"""A metric of several policies by month, as an SVG picture."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 90, 46, 40
STEPS = 4
SMALLEST = 1e-9  # a spread that is drawn; less is rounding
COLOURS = ("#b0473c", "#7a8a3a", "#1f5fa8")
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 14px; font-weight: 600 }
  .frame { fill: #fff }
  .grid { stroke: #ddd }
  .moved { stroke: #888; stroke-dasharray: 4 3 }
  .line { fill: none; stroke-width: 2 }
"""


def lines_svg(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    moved: Sequence[int] = (),
) -> str:
    """One line for each of `series`, over `names`; `moved`: places that get an upright line."""
    values = [value for line in series.values() for value in line]
    low, high = min(values), max(values)
    spread = high - low if high - low > SMALLEST else max(abs(high), SMALLEST)
    margin = spread * 0.1
    scale = _Scale(len(names), low - margin, high + margin)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>',
        *scale.axes(names),
        *(scale.upright(place) for place in moved),
        *scale.drawn(series),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Scale:
    """From places and values to the picture's points."""

    def __init__(self, places: int, low: float, high: float):
        self._places, self._low, self._high = places, low, high

    def axes(self, names: Sequence[str]) -> Iterable[str]:
        for step in range(STEPS + 1):
            value = self._low + (self._high - self._low) * step / STEPS
            y = self._y(value)
            yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{value:.3f}</text>'
        for place, name in enumerate(names):
            x, y = self._x(place), HEIGHT - BOTTOM + 18
            yield f'<text x="{x}" y="{y}" text-anchor="middle">{escape(name)}</text>'

    def upright(self, place: int) -> str:
        x = self._x(place)
        return f'<line class="moved" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'

    def drawn(self, series: Mapping[str, Sequence[float]]) -> Iterable[str]:
        ends = sorted(series, key=lambda name: series[name][-1], reverse=True)
        above = TOP - 16.0
        labels = {}
        for name in ends:  # names beside the lines' ends, none over another
            above = labels[name] = max(self._y(series[name][-1]) + 4, above + 15)
        for (name, values), colour in zip(series.items(), COLOURS, strict=False):
            points = [(self._x(place), self._y(value)) for place, value in enumerate(values)]
            path = " ".join(f"{x},{y}" for x, y in points)
            yield f'<polyline class="line" stroke="{colour}" points="{path}"/>'
            for x, y in points:
                yield f'<circle fill="{colour}" cx="{x}" cy="{y}" r="3"/>'
            at = WIDTH - RIGHT + 12
            yield f'<text x="{at}" y="{labels[name]}" style="fill: {colour}">{escape(name)}</text>'

    def _x(self, place: int) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * place / max(self._places - 1, 1), 1)

    def _y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - share), 1)
