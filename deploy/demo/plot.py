"""An experiment's interval over the users heard, as a picture: SVG for documents, text for
terminals. People would rather look than read."""

from collections.abc import Iterable, Sequence
from html import escape

from deploy.demo.account import Point, Trial
from deploy.demo.figures import signed

BAR_HALF = 16  # characters on either side of zero
AXIS = f"{'-100':<{BAR_HALF - 1}}0{'+100':>{BAR_HALF + 1}}"

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 46, 44
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 14px; font-weight: 600 }
  .frame { fill: #fff }
  .grid { stroke: #ddd }
  .zero { stroke: #888; stroke-dasharray: 4 3 }
  .band { fill: #4c8dd6; fill-opacity: .25 }
  .line { fill: none; stroke: #1f5fa8; stroke-width: 2 }
  .end { fill: #1f5fa8 }
"""


def interval_bar(point: Point) -> str:
    """The interval from -1 to 1 in one line of text: `───` the interval, `●` the difference."""
    low, at, high = (_cell(value) for value in (point.low, point.delta, point.high))
    cells = [" "] * (2 * BAR_HALF + 1)
    cells[BAR_HALF] = "┊"
    for cell in range(low, high + 1):
        cells[cell] = "─"
    cells[at] = "●"
    return "".join(cells)


def _cell(value: float) -> int:
    return BAR_HALF + round(max(-1.0, min(1.0, value)) * BAR_HALF)


def interval_svg(trial: Trial) -> str:
    """The course of a trial as an SVG document: interval as a band, difference as a line."""
    points = trial.course
    users = max((point.users for point in points), default=1)
    decision = trial.state.state.replace("_", " ")
    title = f"{trial.name}: difference in helpfulness, candidate - champion (points)"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="frame" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="22">{escape(title)}</text>',
        *_axes(users),
        *_drawn(points, users, decision),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(users: int) -> Iterable[str]:
    for value in TICKS:
        y = _y(value)
        style = "zero" if value == 0 else "grid"
        yield f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{100 * value:+.0f}</text>'
    for step in range(5):
        count = round(users * step / 4)
        x = _x(count, users)
        yield f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{count}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">users heard</text>'


def _drawn(points: Sequence[Point], users: int, decision: str) -> Iterable[str]:
    if not points:
        return
    across = [_x(point.users, users) for point in points]
    upper = [f"{x},{_y(point.high)}" for x, point in zip(across, points, strict=True)]
    lower = [f"{x},{_y(point.low)}" for x, point in zip(across, points, strict=True)]
    line = [f"{x},{_y(point.delta)}" for x, point in zip(across, points, strict=True)]
    last = points[-1]
    x, y = across[-1], _y(last.delta)
    label = f"{decision}: {signed(last.delta)} [{signed(last.low)}, {signed(last.high)}]"
    yield f'<polygon class="band" points="{" ".join([*upper, *reversed(lower)])}"/>'
    yield f'<polyline class="line" points="{" ".join(line)}"/>'
    yield f'<circle class="end" cx="{x}" cy="{y}" r="4"/>'
    yield f'<text x="{WIDTH - RIGHT}" y="{TOP - 6}" text-anchor="end">{escape(label)}</text>'


def _x(users: int, most: int) -> float:
    return round(LEFT + (WIDTH - LEFT - RIGHT) * users / max(most, 1), 1)


def _y(value: float) -> float:
    height = HEIGHT - TOP - BOTTOM
    return round(TOP + height * (1 - max(-1.0, min(1.0, value))) / 2, 1)
