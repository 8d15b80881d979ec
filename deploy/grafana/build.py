"""The dashboards, as code: `python deploy/grafana/build.py` writes dashboards/*.json from panels.yaml.

A panel has a `title`, what to look for (`about`), and PromQL by the legend of its series (`queries`). It may have:

- `kind`: lines (if it has none), stat, states or table; `unit`, `min`, `max`, `decimals`; `width`, of 24, and `height`
- `limit`: a dashed line, where an alert fires or the daemon acts
- `exemplars`: points that lead to the page of an answer
- `steps`: colours, each from a value on; `words`: a text and a colour of a value
- `columns`: of a table with a row for each workload, unit and steps of the column of each query
- `order`: of a table of the labels of one query, their order
"""

import json
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CONSOLE = "${console}/workloads/%s?since=${__from:date:YYYY-MM-DD}&until=${__to:date:YYYY-MM-DD}"
"""The console's page of a workload, for the days that the dashboard shows."""
EVENTS = (
    ("Promotions", "promoted", "blue"),
    ("Canary steps", "canary", "purple"),
    ("Rollbacks", "(canary_)?rolled_back", "red"),
)
TYPES = {"lines": "timeseries", "stat": "stat", "states": "state-timeline", "table": "table"}
OPTIONS: dict[str, dict[str, Any]] = {
    "lines": {
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}},
    "states": {},
    "table": {},
}
HIDDEN = ("Time", "Value", "__name__", "instance", "job")


def link(title: str, url: str) -> dict[str, Any]:
    return {"title": title, "type": "link", "url": url, "targetBlank": True}


def thresholds(steps: list[tuple[float | None, str]]) -> dict[str, Any]:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def fields(panel: dict[str, Any], kind: str) -> dict[str, Any]:
    """How values look: unit, bounds, colours, words, and the console's page of a workload behind its series."""
    made: dict[str, Any] = {} if kind in ("states", "table") else {"unit": panel.get("unit", "short")}
    made |= {name: panel[name] for name in ("max", "decimals") if name in panel}
    if kind == "lines" and (least := panel.get("min", 0)) is not None:
        made["min"] = least
    if "limit" in panel:
        made["thresholds"] = thresholds([(None, "transparent"), (panel["limit"], "red")])
        made["custom"] = {"thresholdsStyle": {"mode": "dashed"}}
    if kind == "stat":
        made["color"] = {"mode": "thresholds"}
        made["thresholds"] = thresholds(panel.get("steps", [(None, "text")]))
    if "words" in panel:
        words = enumerate(panel["words"].items())
        options = {
            str(value): {"text": text, "color": color, "index": index} for index, (value, (text, color)) in words
        }
        made["mappings"] = [{"type": "value", "options": options}]
    if kind in ("lines", "stat") and any("{{workload}}" in legend for legend in panel["queries"]):
        made["links"] = [link("Console: ${__field.labels.workload}", CONSOLE % "${__field.labels.workload}")]
    return made


def overrides(columns: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Unit and colours of the columns of a table; the name of a workload leads to its dashboard and its page."""
    links = [
        link("Quality of ${__value.raw}", "/d/retuned-quality?var-workload=${__value.raw}&${__url_time_range}"),
        link("Console: ${__value.raw}", CONSOLE % "${__value.raw}"),
    ]
    properties = {"workload": {"links": links}} | {
        name: {"unit": column.get("unit", "short")}
        | (
            {"thresholds": thresholds(column["steps"]), "custom.cellOptions": {"type": "color-text"}}
            if "steps" in column
            else {}
        )
        for name, column in columns.items()
    }
    return [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [{"id": key, "value": value} for key, value in of.items()],
        }
        for name, of in properties.items()
    ]


def transformations(panel: dict[str, Any], letters: str) -> list[dict[str, Any]]:
    """The series of a table as its rows."""
    if "order" in panel:
        order = {name: place for place, name in enumerate(panel["order"])}
        options = {"excludeByName": dict.fromkeys(HIDDEN, True), "indexByName": order}
        return [{"id": "organize", "options": options}]
    times = ["Time", *(f"Time {number}" for number in range(1, len(letters) + 1))]
    names = {f"Value #{letter}": name for letter, name in zip(letters, panel["queries"], strict=True)}
    return [
        {"id": "joinByField", "options": {"byField": "workload", "mode": "outer"}},
        {"id": "organize", "options": {"excludeByName": dict.fromkeys(times, True), "renameByName": names}},
    ]


def made(panel: dict[str, Any]) -> dict[str, Any]:
    """A panel as Grafana has it, without its id and place."""
    kind = panel.get("kind", "lines")
    letters = "ABCDEFGHIJ"[: len(panel["queries"])]
    more: dict[str, Any] = {"exemplar": True} if panel.get("exemplars") else {}
    if kind == "table" or (kind == "stat" and "words" in panel):
        more |= {"instant": True, "range": False}
    if kind == "table":
        more["format"] = "table"
    found = {
        "type": TYPES[kind],
        "title": panel["title"],
        "description": panel["about"],
        "datasource": SOURCE,
        "options": OPTIONS[kind],
        "fieldConfig": {"defaults": fields(panel, kind), "overrides": overrides(panel.get("columns", {}))},
        "targets": [
            {"refId": letter, "expr": query, "legendFormat": "" if kind == "table" else legend, **more}
            for letter, (legend, query) in zip(letters, panel["queries"].items(), strict=True)
        ],
    }
    if kind == "table":
        found["transformations"] = transformations(panel, letters)
    return found


def rows(table: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The panels in rows, side by side on 24 columns; all rows but the first are closed, and hold their panels."""
    found: list[dict[str, Any]] = []
    number, top = 0, 0
    for title, panels in table.items():
        number += 1
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        row = {"type": "row", "id": number, "title": title, "collapsed": top > 0, "gridPos": place, "panels": []}
        found.append(row)
        x, y, height = 0, top + 1, 0
        for panel in panels:
            number += 1
            wide = panel.get("width") or (12 if len(panels) in (2, 4) else 8)
            high = panel.get("height") or (4 if panel.get("kind") == "stat" else 8)
            if x + wide > 24:
                x, y, height = 0, y + height, 0
            placed = made(panel) | {"id": number, "gridPos": {"x": x, "y": y, "w": wide, "h": high}}
            (row["panels"] if row["collapsed"] else found).append(placed)
            x, height = x + wide, max(height, high)
        top = top + 1 if row["collapsed"] else y + height
    return found


def variable(name: str, query: str, **more: Any) -> dict[str, Any]:
    return {"type": "query", "name": name, "datasource": SOURCE, "query": {"query": query, "refId": name}, **more}


def several(name: str, query: str) -> dict[str, Any]:
    """A variable of which several values can be chosen, and renewed with the time range."""
    everything = {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return variable(name, query, label=name.capitalize(), refresh=2, sort=1, **everything)


def dashboard(name: str, question: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    address = "http://localhost:8321"
    variables = [
        {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
        several("workload", "label_values(retuned_drift_check_timestamp_seconds, workload)"),
        {
            "type": "textbox",
            "name": "console",
            "label": "Console",
            "description": "Where browsers reach the daemon",
            "query": address,
            "current": {"text": address, "value": address},
        },
    ]
    used = json.dumps(panels)
    if "$currency" in used:
        variables.append(variable("currency", "label_values(retuned_currency_info, currency)", refresh=1, hide=2))
    if "$version" in used:
        variables.append(several("version", 'label_values(retuned_model_info{workload=~"$workload"}, model_name)'))
    promotions = 'increase(retuned_promotions_total{workload=~"$workload", event=~"%s"}[$__rate_interval]) > 0'
    annotations = [
        {"name": title, "enable": True, "datasource": SOURCE, "iconColor": color, "expr": promotions % event}
        for title, event, color in EVENTS
    ]
    others = {"title": "retuned", "type": "dashboards", "tags": ["retuned"], "keepTime": True, "includeVars": True}
    return {
        "uid": f"retuned-{name}",
        "title": f"retuned: {name}",
        "description": question,
        "tags": ["retuned"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "links": [others, link("Console", "${console}/")],
        "templating": {"list": variables},
        "annotations": {"list": annotations},
        "panels": panels,
    }


def files() -> dict[str, str]:
    """Name of each file and what is to stand in it."""
    table = yaml.safe_load((HERE / "panels.yaml").read_text(encoding="utf-8"))
    boards = {name: dashboard(name, board["question"], rows(board["rows"])) for name, board in table.items()}
    return {f"{name}.json": json.dumps(board, sort_keys=True, indent=2) + "\n" for name, board in boards.items()}


if __name__ == "__main__":
    for name, content in files().items():
        (HERE / "dashboards" / name).write_text(content, encoding="utf-8")
