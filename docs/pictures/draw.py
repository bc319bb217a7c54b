"""Draws the dashboards from the figures of a Prometheus, as pictures for the docs.

usage: draw.py PROMETHEUS START END [NAMESPACE [JOB]]

Takes the panels, queries, units, places and colours from deploy/helm/hydrant/dashboards, and writes
NAME.png beside this file. The lines are ours and not Grafana's; the pages are rendered by Chromium
and made small by pngquant (Debian: apt-get install chromium pngquant). docs/dashboards.md tells where the figures come from.
"""

import html
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).parent
DASHBOARDS = HERE.parent.parent / "deploy/helm/hydrant/dashboards"
COLUMN, ROW, GAP = 50, 30, 8
STEP, RATE = 2, 20

COLOURS = {
    "green": "#73bf69", "red": "#f2495c", "blue": "#5794f2", "orange": "#ff9830", "purple": "#b877d9",
    "yellow": "#f2cc0c", "dark-red": "#c4162a", "light-blue": "#8ab8ff", "text": "#9fa7b3",
}
# Of series whose name means nothing. Red is for what went wrong.
OTHERS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#8ab8ff", "#96d98d", "#ffcb7d"]

STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 11px "DejaVu Sans", sans-serif; }
.panel { position: absolute; background: #181b1f; border: 1px solid #2c3036; box-sizing: border-box; overflow: hidden; }
.title { padding: 5px 8px 0; font-weight: bold; white-space: nowrap; }
.legend { position: absolute; bottom: 3px; left: 8px; right: 4px; line-height: 15px; max-height: 30px; overflow: hidden; }
.legend span { margin-right: 10px; white-space: nowrap; }
.legend i { display: inline-block; width: 10px; height: 3px; margin-right: 4px; vertical-align: middle; }
.stat { text-align: center; font-size: 34px; font-weight: bold; margin-top: 22px; }
svg { display: block; } text { fill: #8e949e; font-size: 10px; }
"""


class Prometheus:
    def __init__(self, url, start, end, namespace, job):
        self.url, self.start, self.end, self.names = url, start, end, (namespace, job)

    def range(self, expr):
        return self.ask("query_range", expr, start=self.start, end=self.end, step=STEP)

    def at_end(self, expr):
        return self.ask("query", expr, time=self.end)

    def ask(self, what, expr, **more):
        for variable, value in [
            ("$__rate_interval", f"{RATE}s"),
            ("$__range", f"{int(self.end - self.start)}s"),
            ("$namespace", self.names[0]),
            ("$job", self.names[1]),
        ]:
            expr = expr.replace(variable, value)
        form = urllib.parse.urlencode({"query": expr, **more}).encode()
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}", form) as answer:
            return json.load(answer)["data"]["result"]


def series(panel, prometheus):
    """[(name, [(time, value)])] of all queries of a panel."""
    found = []
    for target in panel["targets"]:
        for one in prometheus.range(target["expr"]):
            name = target.get("legendFormat") or ""
            for label, value in one["metric"].items():
                name = name.replace("{{%s}}" % label, value)
            points = [(time, float(value)) for time, value in one["values"]]
            points = [(time, value) for time, value in points if math.isfinite(value)]
            # What stands for "nothing" where there is something has no name.
            if points and "{{" not in name and (name.strip() or not target.get("legendFormat")):
                found.append((name.strip(), points))
    return sorted(found)


def colour(panel, name, position):
    for override in panel["fieldConfig"]["overrides"]:
        matcher, wanted = override["matcher"]["id"], override["matcher"]["options"]
        if wanted == name if matcher == "byName" else fits(wanted, name):
            return COLOURS[override["properties"][0]["value"]["fixedColor"]]
    return OTHERS[position % len(OTHERS)]


def fits(pattern, name):
    return re.search(pattern.strip("/"), name)


def told(value, unit):
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "s":
        if value >= 90:
            return f"{value / 60:.3g} min"
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{value * 1000:.3g} ms"
    if unit in ("bytes", "Bps"):
        for size, word in [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")]:
            if value >= size or size == 1:
                return f"{value / size:.3g} {word}" + ("/s" if unit == "Bps" else "")
    return f"{value:.3g}" + {"reqps": " req/s", "ops": " ops/s"}.get(unit, "")


def above(value):
    """A round number that is not below."""
    size = 10 ** math.floor(math.log10(value))
    return next(step * size for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * size >= value * 0.999)


def lines(panel, prometheus, width, height):
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    found = series(panel, prometheus)
    left, right, top, bottom = 62, 10, 6, 18
    if not found:
        return f'<svg width="{width}" height="{height}"><text x="{width / 2}" y="{height / 2}" text-anchor="middle">No data</text></svg>', []
    base, drawn = {}, []
    for position, (name, points) in enumerate(found):
        low = [base.get(time, 0) if stacked else 0 for time, _ in points]
        high = [below + value for below, (_, value) in zip(low, points)]
        if stacked:
            base.update({time: value for (time, _), value in zip(points, high)})
        drawn.append((name, colour(panel, name, position), [time for time, _ in points], low, high))
    most = max(max(high) for *_, high in drawn)
    most = defaults.get("max") or (above(most) if most > 0 else 1)
    x = lambda time: left + (time - prometheus.start) / (prometheus.end - prometheus.start) * (width - left - right)
    y = lambda value: top + (1 - min(value, most) / most) * (height - top - bottom)
    svg = [f'<svg width="{width}" height="{height}">']
    for part in range(5):
        value = most * part / 4
        svg.append(f'<path d="M{left} {y(value):.1f}H{width - right}" stroke="#2c3036"/>')
        svg.append(f'<text x="{left - 6}" y="{y(value) + 3:.1f}" text-anchor="end">{told(value, defaults["unit"])}</text>')
    minutes = int((prometheus.end - prometheus.start) // 60)
    for minute in range(minutes + 1):
        at = x(prometheus.start + minute * 60)
        svg.append(f'<text x="{at:.1f}" y="{height - 4}" text-anchor="{"end" if minute == minutes else "middle"}">{minute} min</text>')
    opacity = custom.get("fillOpacity", 0) / 100
    for _, paint, times, low, high in reversed(drawn):
        # A gap in the figures is a gap in the line.
        pieces, piece = [], [0]
        for index in range(1, len(times)):
            if times[index] - times[index - 1] > STEP * 1.5:
                pieces.append(piece)
                piece = []
            piece.append(index)
        for piece in [*pieces, piece]:
            line = " ".join(f"{x(times[i]):.1f},{y(high[i]):.1f}" for i in piece)
            under = " ".join(f"{x(times[i]):.1f},{y(low[i]):.1f}" for i in reversed(piece))
            svg.append(f'<polygon points="{line} {under}" fill="{paint}" opacity="{opacity}"/>')
            svg.append(f'<polyline points="{line}" fill="none" stroke="{paint}" stroke-width="1.3"/>')
    return "".join(svg) + "</svg>", [(name, paint) for name, paint, *_ in drawn]


def timeline(panel, prometheus, width, height):
    found = series(panel, prometheus)
    mapped = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    left, bottom = 80, 18
    tall = (height - bottom) / max(len(found), 1)
    x = lambda time: left + (time - prometheus.start) / (prometheus.end - prometheus.start) * (width - left - 10)
    svg = [f'<svg width="{width}" height="{height}">']
    for row, (name, points) in enumerate(found):
        svg.append(f'<text x="{left - 8}" y="{(row + 0.5) * tall + 3:.1f}" text-anchor="end">{html.escape(name)}</text>')
        for time, value in points:
            paint = COLOURS[mapped[str(int(value))]["color"]]
            svg.append(f'<rect x="{x(time):.1f}" y="{row * tall + 3:.1f}" width="{x(time + STEP) - x(time) + 0.5:.1f}" height="{tall - 6:.1f}" fill="{paint}"/>')
    minutes = int((prometheus.end - prometheus.start) // 60)
    for minute in range(minutes + 1):
        svg.append(f'<text x="{x(prometheus.start + minute * 60):.1f}" y="{height - 4}" text-anchor="{"end" if minute == minutes else "middle"}">{minute} min</text>')
    return "".join(svg) + "</svg>", [(one["text"], COLOURS[one["color"]]) for one in mapped.values()]


def stat(panel, prometheus):
    defaults = panel["fieldConfig"]["defaults"]
    values = []
    for target in panel["targets"]:
        for one in prometheus.at_end(target["expr"]):
            name = target.get("legendFormat") or ""
            for label, value in one["metric"].items():
                name = name.replace("{{%s}}" % label, value)
            values.append((name, float(one["value"][1])))
    parts = []
    for name, value in values:
        paint = "#73bf69"
        for step in defaults.get("thresholds", {}).get("steps", []):
            if step["value"] is None or value >= step["value"]:
                paint = COLOURS[step["color"]]
        small = f'<div style="font-size:11px">{html.escape(name)}</div>' if name else ""
        parts.append(f'<div class="stat" style="color:{paint}">{told(rounded(value, defaults), defaults["unit"])}{small}</div>')
    return "".join(parts) or '<div class="stat">No data</div>'


def rounded(value, defaults):
    return round(value, defaults["decimals"]) if "decimals" in defaults else value


def page(dashboard, prometheus):
    body, lowest = [], 0
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * COLUMN + GAP, place["y"] * ROW + GAP
        width, height = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        lowest = max(lowest, top + height)
        legend = []
        if panel["type"] == "stat":
            inside = stat(panel, prometheus)
        else:
            draw = timeline if panel["type"] == "state-timeline" else lines
            # Two lines of legend where one is too short for the names.
            inside, legend = draw(panel, prometheus, width, height - 44)
            if sum(len(name) * 7 + 24 for name, _ in legend) > width - 12:
                inside, legend = draw(panel, prometheus, width, height - 59)
        names = "".join(f'<span><i style="background:{paint}"></i>{html.escape(name)}</span>' for name, paint in legend)
        body.append(
            f'<div class="panel" style="left:{left}px;top:{top}px;width:{width}px;height:{height}px">'
            f'<div class="title">{html.escape(panel["title"])}</div>{inside}<div class="legend">{names}</div></div>'
        )
    text = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><body>{''.join(body)}"
    return text, 24 * COLUMN + GAP, lowest + GAP


def main(url, start, end, namespace="hydrant", job="hydrant"):
    prometheus = Prometheus(url, float(start), float(end), namespace, job)
    chromium = shutil.which("chromium") or sys.exit("chromium is not installed (apt-get install chromium)")
    pngquant = shutil.which("pngquant") or sys.exit("pngquant is not installed (apt-get install pngquant)")
    for file in sorted(DASHBOARDS.glob("*.json")):
        text, width, height = page(json.loads(file.read_text()), prometheus)
        with tempfile.TemporaryDirectory() as directory:
            source = pathlib.Path(directory, "page.html")
            source.write_text(text)
            subprocess.run(
                [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 f"--user-data-dir={directory}/profile", f"--window-size={width},{height}",
                 f"--screenshot={HERE / file.stem}.png", source.as_uri()],
                check=True, capture_output=True, timeout=120,
            )
        drawn = HERE / f"{file.stem}.png"
        subprocess.run([pngquant, "--force", "--output", drawn, "64", drawn], check=True)
        print(drawn, drawn.stat().st_size, "bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
