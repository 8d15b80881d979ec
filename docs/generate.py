"""Writes docs/reference/ from the code: `python docs/generate.py`. A test fails while the pages are out of step."""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retuned.consumers.cluster.metrics import DaemonMetrics as ClusterMetrics
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.traffic import Traffic
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.command import common_options
from retuned.daemon.cli.example import keys, sections, single_sign_on, targets
from retuned.daemon.cli.main import GROUPS, summary
from retuned.daemon.gateway.metrics import Metrics as GatewayMetrics
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.operations import openapi
from retuned.daemon.roles import ROLES
from retuned.daemon.transfer.exports import TABLES as EXPORTED
from retuned.daemon.web.routes import ROUTES
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "deploy" / "schemas"
NOTE = "<!-- Written by `python docs/generate.py`; change the code, not this page. -->"

VIEWED = {
    "quarantine": "row_states", "traffic": "interactions", "votes": "feedback", "grounding_strata": "groundings",
    "calibration_candidates": "groundings", "erased_versions": "models",
}  # fmt: skip
"""The table from which the columns of a view come."""


# Message of kafka.model_events_topic.
MODEL_EVENT = {
    "id": "unique; a message may come twice after a crash, with one id",
    "timestamp": "when it was changed, ISO 8601, UTC",
    "event": "`promoted` or `rolled_back`; of a rollout also `canary`, `canary_rolled_back` and `completed`; "
    "`approval_requested`, `approval_refused` and `approval_expired`: what serves has not changed",
    "workload": "the kind of request",
    "model": "name under which the new champion, or canary, is served: `support.refunds@3f2a91c0`, or "
    "`support.refunds@base`",
    "version": "its version; null: the base model",
    "previous_version": "the champion before, which answers the rest where share is below 1, or what was taken back; "
    "null: the base model",
    "path": "folder of the version, absolute; null: the base model",
    "base_model": "folder of the base model that the new champion was trained on; where that "
    "is the base model itself, of the one that the champion before was trained on",
    "share": "share of the conversations that it answers; 1.0: all",
    "experiment": "of a rollout, by which conversations are assigned; null: of none",
    "champion": "`model` and `path` of the champion after this change, in every message; null as path: the base model",
    "reason": "why it was changed, or what waits until when, or how that ended",
    "approval": "of a request for approval alone: its `id`, `kind` (version or dataset), `version` and, of a version, "
    "`model`, `expires_at`, "
    "`actor` and `reason` of a refusal",
}
# What an app sees that /api/v1 does not have.
OTHER_ROUTES = {
    "GET /healthz": "200 while the process is sound, else 503 with the reason. Restart the daemon then.",
    "GET /readyz": "200 while events flow, else 503 with the reason, also while the broker is away or a topic is "
    "missing.",
    "GET /metrics": "[Metrics](metrics.md) for Prometheus; who asks for OpenMetrics by `Accept` gets exemplars, too.",
    "GET /sign-in": "Where a browser without a session is sent: asks for the token, and leads to `next`.",
    "POST /sign-in": "The form of that page: `token`, `next`. Sets the cookie of a session.",
    "GET /sign-in/oidc": "Leads to the OpenID Connect provider of `http.oidc`, and afterwards to `next`.",
    "GET /sign-in/oidc/callback": "Where the provider sends the browser back to. Sets the cookie of a session.",
    "POST /sign-out": "Ends the session.",
    "GET /sign-out/oidc": "Leads to the provider's page for signing out there.",
    "GET /": "The console's overview: which workloads need a person, and all workloads.",
    "GET /workloads/{workload}": "One workload: quality over time, drift, decisions of the gate, retrainings, money, "
    "settings.",
    "POST /workloads/{workload}/cancel": "The form of that page that cancels a retraining: `reason`.",
    "POST /workloads/{workload}/promote": "The form of that page that returns to the base model: `version`, `reason`.",
    "POST /workloads/{workload}/rollback": "The form of that page that rolls the version in service back: `reason`.",
    "GET /workloads/{workload}/versions/{version}": "A version beside the one before it, answer by answer.",
    "GET /workloads/{workload}/teach": "`/teach` for one workload.",
    "GET /teach": "The label requests that this expert may answer, one at a time.",
    "GET /teach/mine": "This expert's latest answers, and what became of each.",
    "POST /labels/{id}": "The form of `/teach`: `verdict`, `correction`, `comment`; or `action`, `skip`.",
    "GET /answers": "Search in the stored answers.",
    "GET /system": "Events, storage, retrainings under way, warnings.",
    "GET /erasures": "A form to erase events, and the erasures so far.",
    "POST /erasures": "Show what would be erased, or erase it.",
    "GET /events": "Server-sent events: the time of each newer snapshot of the overview. Open pages follow them.",
    "GET /static/{name}": "Style sheet and scripts of the console.",
    "GET /interactions/{id}": "An interaction, as HTML: the conversation as stored, redacted, its figures, "
    "feedback, grounding, the model that answered, and where it was used in training.",
    "GET /approvals/{id}": "A request for approval, with what the gate found or what a dataset teaches, for "
    "people who decide on it.",
    "POST /approvals/{id}": "The form of that page: `decision` and `reason`.",
    "GET /workloads/{workload}/rows": "What the last dataset decided about each row, with forms to overrule it.",
    "GET /workloads/{workload}/drift-examples": "A current question for each feature that moved in the latest check.",
    "POST /workloads/{workload}/rows": "A form of that page: `action`, `id`, `reason` and `answer`.",
    "GET /workloads/{workload}/datasets": "Two datasets side by side: `before` and `after`, by default the last two.",
    "GET /workloads/{workload}/memory": "The entries of the memory with the life of each, with forms to change them.",
    "POST /workloads/{workload}/memory": "A form of that page: `action`, `id`, `reason` and `answer`.",
    "GET /reports/{id}": "A report of a drift check, of a month or of a quarter, as HTML.",
}


def files() -> dict[str, str]:
    """The text of each file of docs/reference."""
    document = openapi.document()
    pages = {
        "cli.md": cli(),
        "configuration.md": configuration(),
        "http.md": http(document),
        "metrics.md": metrics(),
        "tables.md": tables(),
        "events.md": events(document["components"]["schemas"]["LabelRequest"]),
    }
    return {
        "openapi.json": json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        **{name: "\n".join(lines).rstrip() + "\n" for name, lines in pages.items()},
    }


# Markdown


def page(title: str, *introduction: str) -> list[str]:
    """The first lines of a page."""
    return [f"# {title}", "", NOTE, "", *introduction, ""]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table; a bar inside a cell is escaped."""
    lines = [head, *rows]
    cells = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in lines]
    cells.insert(1, " | ".join("---" for _ in cells[0].split(" | ")))
    return [*(f"| {line} |" for line in cells), ""]


def text(written: str) -> str:
    """Prose of the code as Markdown on one line: outside of backticks nothing is markup."""
    parts = re.split(r"(`[^`]+`)", " ".join(written.split()))
    plain = [part if part.startswith("`") else re.sub(r"([*\[\]])", r"\\\1", part) for part in parts]
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in plain)


def sentence(written: str) -> str:
    """A text that begins as a sentence does, unless with a name (vLLM, train.rank), and ends with a full stop."""
    found = text(written)
    if not found:
        return ""
    first = found[:1].upper() if re.match(r"[a-z]+(?![\w.])", found) else found[:1]
    return first + found[1:] + ("" if found.endswith((".", ":", "…")) else ".")


def named(name: str, anchor: str | None = None) -> str:
    """A name in code font that a link can lead to."""
    return f'<a id="{anchor or name}"></a>`{name}`'


# Command line


def cli() -> list[str]:
    """The commands, by group."""
    lines = page(
        "Command line",
        "Commands ask the running daemon, by the port and the tokens of the configuration; `status`, `dead-letters`,",
        "`labels`, `dataset`, `rows`, `accounts`, `import`, `export`, `lineage`, `retrain`, `approve`, `promote`,",
        "`rollback` and `report` open the warehouse themselves when no daemon is running, if `http.host` is an address",
        "of this machine.",
        "[Exit codes](../operate.md#exit-codes) are the same for all of them. `retuned --version` prints the version.",
        '`eval "$(_RETUNED_COMPLETE=bash_source retuned)"` makes Bash complete commands and options; `zsh_source` and',
        "`fish_source` do so for Zsh and Fish.",
    )
    for group, commands in GROUPS.items():
        lines += [f"**{group}**", ""]
        rows = ((f"[`retuned {one.name}`](#retuned-{one.name})", sentence(summary(one))) for one in commands)
        lines += table(("command", "what it does"), rows)
    lines += ["## Options of every command", ""]
    lines += table(("option", "meaning"), ((_argument("options", one), _meaning(one)) for one in common_options()))
    for command in chain(*GROUPS.values()):
        lines += [f"## retuned {command.name}", ""]
        if isinstance(command, click.Group):
            lines += [sentence(command.help or ""), ""]
            for one in command.commands.values():
                lines += [f"### retuned {command.name} {one.name}", "", *_command(one, f"{command.name} {one.name}")]
        else:
            lines += _command(command, str(command.name))
    return lines


def _command(command: click.Command, name: str) -> list[str]:
    common = {(one.name, getattr(one, "help", None)) for one in common_options()}
    own = sorted(
        (one for one in command.params if (one.name, getattr(one, "help", None)) not in common),
        key=lambda one: isinstance(one, click.Option),
    )
    positional = [_placeholder(one) for one in own if isinstance(one, click.Argument)]
    usage = " ".join(["retuned", name, *positional, "[OPTION…]"])
    lines = ["```", usage, "```", "", sentence(command.help or ""), ""]
    if own:
        anchor = name.replace(" ", "-")
        lines += table(("argument", "meaning"), ((_argument(anchor, one), _meaning(one)) for one in own))
    return lines


def _placeholder(parameter: click.Parameter) -> str:
    name = str(parameter.metavar or (parameter.name or "").upper())
    if isinstance(parameter, click.Argument) and not parameter.required:
        return f"[{name.strip('[]')}]" if "…" not in name else name
    return name


def _argument(command: str, parameter: click.Parameter) -> str:
    placeholder = _placeholder(parameter).replace("|", " or ")
    if isinstance(parameter, click.Option):
        value = "" if parameter.is_flag else f" {placeholder}"
        shown = ", ".join(f"`{name}{value}`" for name in parameter.opts)
    else:
        shown = f"`{placeholder}`"
    return f'<a id="{command}.{parameter.name}"></a>{shown}'


def _meaning(parameter: click.Parameter) -> str:
    kind = parameter.type
    choices = f"One of {', '.join(f'`{choice}`' for choice in kind.choices)}" if isinstance(kind, click.Choice) else ""
    about = getattr(parameter, "help", None) or ""
    return sentence("; ".join(part for part in (choices, about) if part))


# Configuration


def configuration() -> list[str]:
    """Every key, from the settings."""
    lines = page(
        "Configuration",
        "One YAML file: `retuned.yaml` in the working folder, or the one that `--config` names. It needs only the",
        "keys that differ from their defaults; `retuned config` prints all of them. An unknown key or a wrong value",
        "stops the start, with a line that names the key, the value and what was expected.",
        "",
        "The environment overrides the file: the variable of `kafka.bootstrap_servers` is",
        "`RETUNED__KAFKA__BOOTSTRAP_SERVERS`. `null`, and lists and maps in brackets, mean the same as in the file.",
        "Keep secrets there, or in files that `…_file` keys name.",
    )
    found = list(sections())
    lines += table(("section", "what it sets"), ((f"[`{name}`](#{name})", text(about)) for name, about, _ in found))
    lines += ["Beside the sections:", ""]
    rows = ((named(key.name), f"`{key.default}`", sentence(key.meaning)) for key in keys())
    lines += table(("key", "default", "meaning"), rows)
    for name, about, own in found:
        lines += [f"## {name}", "", text(about), ""]
        rows = ((named(key.name, f"{name}.{key.name}"), f"`{key.default}`", sentence(key.meaning)) for key in own)
        lines += table(("key", "default", "meaning"), rows)
        for meaning, keys_of in [single_sign_on()] if name == "http" else ():
            lines += ["### http.oidc", "", text(meaning), ""]
            of_oidc = (
                (named(key.name, f"http.oidc.{key.name}"), f"`{key.default}`", sentence(key.meaning)) for key in keys_of
            )
            lines += table(("key", "default", "meaning"), of_oidc)
        for kinds, meaning, keys_of in targets() if name == "serving" else ():
            lines += [f"### Targets of the kind {kinds}", "", text(meaning), ""]
            of_kind = ((f"`{key.name}`", f"`{key.default}`", sentence(key.meaning)) for key in keys_of)
            lines += table(("key", "default", "meaning"), of_kind) if keys_of else []
    return lines


# HTTP


def http(document: dict[str, Any]) -> list[str]:
    """The routes, from the OpenAPI document."""
    roles = {f"{one.method} {one.path}": one.least or "anybody" for one in ROUTES}
    lines = page("HTTP", text(document["info"]["description"]))
    lines += ["## Roles", "", "Each role may do what those above it may.", ""]
    lines += table(("role", "what it may do"), ((named(role), sentence(about)) for role, about in ROLES.items()))
    lines += ["## Pages, metrics, health", ""]
    lines += table(
        ("route", "least role", "what it answers"),
        ((named(route, route.removeprefix("GET ")), roles[route], about) for route, about in OTHER_ROUTES.items()),
    )
    lines += ["## API", ""]
    lines += [
        "Parameters, bodies and answers are in [openapi.json](openapi.json), which the daemon serves as",
        "`/api/v1/openapi.json`.",
        "",
    ]
    lines += table(
        ("route", "least role", "what it does"),
        (
            (named(f"{method.upper()} {path}", f"api-{one['operationId']}"), _role(one), sentence(one["summary"]))
            for path, methods in document["paths"].items()
            for method, one in methods.items()
        ),
    )
    lines += ["## Refusals", "", 'The body is `{"error": "…"}`: why it was not done, and the way out.', ""]
    lines += table(("status", "why"), ((named(code), sentence(about)) for code, about in openapi.REFUSALS.items()))
    return lines


def _role(operation: dict[str, Any]) -> str:
    """The least role of an operation."""
    (role,) = operation["security"][-1]["basic"]
    return str(role)


def _type(schema: dict[str, Any]) -> str:
    """The type of a JSON Schema in words."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "anyOf" in schema:
        kinds = dict.fromkeys(_type(one) for one in schema["anyOf"])
        if {"number", "integer"} <= kinds.keys():
            del kinds["integer"]
        return " or ".join(kinds)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kinds = schema.get("type", "any")
    if kinds == "array":
        return f"array of {_type(schema['items'])}" if "items" in schema else "array"
    return " or ".join([kinds] if isinstance(kinds, str) else kinds).replace("string", "text")


# Metrics


def metrics() -> list[str]:
    """Every metric, from the classes that make them."""
    lines = page(
        "Metrics",
        "`/metrics` of the daemon, in a cluster with those of the last section but one, of each",
        "[ingester](../cluster.md) those of the sections Ingestion and Ingesters, and of each [gateway](../gateway.md)",
        "those of the last section, are for Prometheus, beside those of the",
        "process (`process_…`, `python_…`). A figure that is",
        "not known is absent, not zero. Gauges without labels are the exception: they are 0 from the start until they",
        "are first set, as `retuned_ingest_last_event_timestamp_seconds` is before the first event since the start of",
        "the daemon. `model_name` is a model as it is served (`support.refunds@3f2a91c0`); `*` is",
        "all models of the window together. Alerts on them are in `deploy/retuned.rules.yml`, each with an entry under",
        "[Operate](../operate.md#alerts); dashboards are in `deploy/grafana`.",
    )
    registry = CollectorRegistry()
    groups = {
        "Ingestion": ConsumerMetrics(registry),
        "Monitoring": MonitorMetrics(registry),
        "Retraining": RetrainMetrics(registry),
        "The daemon": DaemonMetrics(registry),
        "Ingesters": SegmentMetrics(registry),
        "Daemons of a cluster": ClusterMetrics(CollectorRegistry()),
        "Gateways": GatewayMetrics(registry),
    }
    for title, group in groups.items():
        lines += [f"## {title}", ""]
        rows = (
            (named(name), kind, f"{sentence(about)}{_labels(labels)}")
            for collector in _collectors(group)
            for name, kind, labels, about in _families(collector)
        )
        lines += table(("metric", "type", "meaning and labels"), rows)
    return lines


def _labels(labels: Iterable[str]) -> str:
    names = ", ".join(f"`{label}`" for label in labels)
    return f" By {names}." if names else ""


def _collectors(group: Any) -> Iterator[Any]:
    """What an object of metrics holds: itself, in dictionaries, and in objects of its own."""
    for part in vars(group).values():
        if isinstance(part, dict):
            yield from part.values()
        elif type(part).__module__.startswith("retuned.") and not isinstance(part, Traffic | Gauge):
            yield from _collectors(part)
        else:
            yield part


def _families(collector: Any) -> Iterator[tuple[str, str, Iterable[str], str]]:
    """Name as it is queried, type, labels and help."""
    if isinstance(collector, Traffic):
        found = [
            (family.name, family.type, vars(family)["_labelnames"], family.documentation)
            for family in collector.describe()
        ]
    elif isinstance(collector, Counter | Gauge | Histogram):
        found = [(one.name, one.type, collector._labelnames, one.documentation) for one in collector.describe()]
    else:
        return
    for name, kind, labels, about in found:
        yield f"{name}_total" if kind == "counter" else name, kind, labels, about


# Tables


def tables() -> list[str]:
    """Every table and view of a new warehouse, with its descriptions."""
    lines = page(
        "Tables",
        "The warehouse is one DuckDB file, and one process opens it. While the daemon runs, read a table with",
        "[`retuned export`](cli.md#retuned-export); when it does not, open the file with any DuckDB (`ATTACH` it: the",
        "tables are in its schema `main`). `SELECT column_name, comment FROM duckdb_columns()` prints the meaning of",
        "each column; those of the tables that can be exported are below. All times are UTC, without a zone. Events",
        "leave for the [archive](../operate.md#retention-and-archive).",
    )
    names, columns = _described()
    lines += table(
        ("table", "a row is", "export"),
        (
            (f"[`{name}`](#{name})", text(about), "yes") if name in EXPORTED else (named(name), text(about), "")
            for name, about in names.items()
        ),
    )
    for name in EXPORTED:
        lines += [f"## {name}", ""]
        rows = (
            (
                named(column, f"{name}.{column}"),
                row["data_type"] + (", null" if row["is_nullable"] and name not in VIEWED else ""),
                text(row["comment"] or columns[VIEWED.get(name, name)].get(column, row)["comment"] or ""),
            )
            for column, row in columns[name].items()
        )
        lines += table(("column", "type", "meaning"), rows)
    return lines


def _described() -> tuple[dict[str, str], dict[str, dict[str, dict[str, Any]]]]:
    """The descriptions of tables and views, and the columns of each with type, nullability and description."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = open_warehouse(WarehouseSettings(path=Path(folder) / "retuned.duckdb"))
        names = {
            row["name"]: row["comment"]
            for row in warehouse.rows(
                "SELECT table_name AS name, comment FROM duckdb_tables() UNION ALL "
                "SELECT view_name, 'View: ' || comment FROM duckdb_views() WHERE NOT internal ORDER BY name"
            )
        }
        rows = warehouse.rows(
            "SELECT table_name, column_name, data_type, is_nullable, comment FROM duckdb_columns() "
            "WHERE database_name = 'retuned' AND NOT internal ORDER BY table_name, column_index"
        )
        warehouse.close()
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        columns.setdefault(row["table_name"], {})[row["column_name"]] = row
    return names, columns


# Events


def events(label_request: dict[str, Any]) -> list[str]:
    """The events that apps publish, from their schemas, and those of the daemon."""
    lines = page(
        "Events",
        "Two topics, one JSON object a message, keyed by conversation or user: `kafka.interactions_topic` and",
        "`kafka.feedback_topic`. The JSON Schemas are in `deploy/schemas`. [Formats](../formats.md) has the other",
        "formats that are understood.",
    )
    _, columns = _described()
    for name, stored in (("interaction", "interactions"), ("feedback", "feedback")):
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
        lines += [f"## {schema['title']}", "", text(schema["description"]), ""]
        rows = []
        for field, one in schema["properties"].items():
            default = one.get("default")
            needed = "required" if field in schema["required"] else f"default `{default}`" if default else ""
            kind = _type(one).removesuffix(" or null")
            about = sentence(_description(one) or columns[stored][field]["comment"] or "")
            rows.append((named(field, f"{name}.{field}"), kind, needed, about))
        lines += table(("field", "type", "", "meaning"), rows)
    lines += ["## Passed over", ""]
    lines += ["What is known to be no event is neither stored nor a dead letter; it is counted by its reason.", ""]
    lines += table(("reason", "what it is"), ((named(code), sentence(about)) for code, about in PASSED_OVER.items()))
    lines += ["## Model event", "", "A change of what serves, on `kafka.model_events_topic`, keyed by workload.", ""]
    lines += table(
        ("field", "meaning"),
        ((named(name, f"model-event.{name}"), sentence(about)) for name, about in MODEL_EVENT.items()),
    )
    lines += ["## Label request", ""]
    lines += [
        "An answer that experts are asked to judge, on `kafka.label_requests_topic`. The answer to it is feedback of",
        "the source `expert`.",
        "",
    ]
    lines += table(
        ("field", "type", "meaning"),
        (
            (named(name, f"label-request.{name}"), _type(one), sentence(one["description"]))
            for name, one in label_request["properties"].items()
        ),
    )
    return lines


def _description(schema: dict[str, Any]) -> str | None:
    choices: list[dict[str, Any]] = [schema, *schema.get("anyOf", ())]
    return next((one["description"] for one in choices if "description" in one), None)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
