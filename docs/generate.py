"""Writes docs/reference/ from the code: `python docs/generate.py`. A test fails while the pages are out of step."""

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retuned.consumers.cluster.metrics import DaemonMetrics as ClusterMetrics
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.traffic import Traffic
from retuned.consumers.warehouse.connection import open_warehouse
from retuned.consumers.warehouse.schema import MIGRATIONS
from retuned.daemon.cli.example import keys, sections, targets
from retuned.daemon.cli.main import parser
from retuned.daemon.gateway.metrics import Metrics as GatewayMetrics
from retuned.daemon.metrics import Metrics as DaemonMetrics
from retuned.daemon.transfer.exports import TABLES as EXPORTED
from retuned.daemon.web import openapi
from retuned.daemon.web.principals import ROLES
from retuned.daemon.web.routes import ROUTES
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "deploy" / "schemas"
NOTE = "<!-- Written by `python docs/generate.py`; change the code, not this page. -->"

TABLES = {
    "interactions": "What a model was asked and what it answered: one event, redacted.",
    "feedback": "What somebody thought of an answer: one event, redacted.",
    "dead_letters": "A message that is no event: why, and its redacted payload.",
    "followed_segments": "How far a daemon of a cluster follows the segments: one row.",
    "control_positions": "How far a daemon of a cluster has the changes of the control tables: the greatest number.",
    "artifacts": "What a cluster keeps in object storage of a version, a dataset or a report.",
    "offsets": "How far a partition, or a file that was imported, is read; on a cluster, how many replays there were.",
    "datasets": "A dataset: its folder, its size, its card. It stays when retention removes the folder.",
    "dataset_rows": "A row of a dataset, and the events that it came from.",
    "quarantine": "A piece of feedback that the latest dataset of its workload leaves out as doubtful.",
    "runs": "A retraining, from its reasons to its end.",
    "pauses": "A pause of retraining, of one workload or of all.",
    "evaluations": "One answer of one model to a row, with what was measured of it.",
    "decisions": "A decision of the policy (retrain or not) or of the gate (promote or not), with all reasons.",
    "models": "A version: an adapter, or all weights, under the hash of its content. It stays when retention removes "
    "the folder.",
    "deployments": "A version that the targets of a workload should have. What was drained has none.",
    "webhook_models": "A version that a webhook acknowledged.",
    "aliases": "Which version serves a workload, which one did before, and which one is a canary.",
    "promotions": "A change of what serves: a promotion, a rollback, or a step of a rollout.",
    "rollouts": "A version that goes into service step by step, and how far it is.",
    "rollout_checks": "A look at a canary beside the champion, with the decision: each for `retention.detail_days`, "
    "then the last of each hour.",
    "shadow_answers": "What a version answered in shadow, redacted, until a day after its rollout has ended; columns "
    "as those of `feedback`, which it comes as.",
    "shadow_scores": "Of a conversation in shadow, how good the answers of champion and version are.",
    "approvals": "A request for a person's approval of a version that the gate passed. It stays.",
    "label_requests": "An answer that experts were asked to judge, and the feedback that answered.",
    "drift_checks": "A drift check of a workload, for `retention.history_days`; of those without drift the last of "
    "each hour, after `retention.detail_days`.",
    "drift_references": "A current window that an operator made the reference of drift checks.",
    "quality": "A figure of a workload with its interval: of each minute for `retention.detail_days`, then the last of "
    "each hour, after 30 days the last of each day.",
    "watch_checks": "A look at a new champion in service, beside the one before it: each for `retention.detail_days`, "
    "then the last of each hour.",
    "ledger": "A gain or a cost. A correction is another entry. Entries of one day are summed "
    "after `retention.detail_days`.",
    "ledger_left_out": "Numbers that events reported and that are beyond what one event may book.",
    "ledger_moments": "Sums and products by conversation, from which the intervals of gains and ROI are computed.",
    "ledger_outcomes": "What became of the conversations of a day, as the ledger has counted them.",
    "feedback_totals": "All feedback so far on stored answers of a workload; retention takes nothing away.",
    "ledger_progress": "How far the ledger had booked each partition before 0.2.0; not written any more.",
    "ledger_position": "How far the ledger has booked: one row.",
    "judgements": "A vote or a correction beside the answer that it is about, so that nothing joins `feedback` and "
    "`interactions` each minute. It follows them within one.",
    "rating_periods": "Users' ratings of the model in service over one length of the current window, one of each "
    "account, for the policy. What is over is counted once.",
    "blindness": "A monitor of a workload that has too few rows to report anything. No row: it has enough.",
    "judgements_position": "How far `judgements` follows the events: one row.",
    "answer_minutes": "How many answers a workload has in a minute, and when the first of them was. It follows "
    "`interactions` within a minute.",
    "answer_minutes_position": "How far `answer_minutes` follows the events: one row.",
    "groundings": "What the grounding rules found in a sampled or labelled answer. Without a label it stays a week.",
    "batches": "The number of the last transaction that stored events: one row.",
    "ingest_resumptions": "A time at which an operator had ingestion go on after too many dead letters.",
    "archived_ids": "An event of a daemon in a cluster that is in the archive.",
    "archives": "A Parquet file of the archive.",
    "schema_migrations": "A migration that was applied to this file.",
    "traffic": "View: the interactions without demonstrations (imported examples that no model answered).",
    "votes": "View: who called an answer helpful or invented. A correction counts as a vote that the answer was not "
    "helpful, unless the same account said otherwise.",
}
VIEWED = {"traffic": "interactions", "votes": "feedback"}
_WORKLOAD = {"workload": "the kind of request"}
_MADE = {"created_at": "when it was made"}
_PLACE = {
    "topic": "Kafka topic; `import:` and a hash for a file",
    "partition": "of the topic",
    "offset": "in the partition",
    "received_at": "when it was stored",
}
_EVENT = {"timestamp": "when it happened", **_PLACE}
# What columns mean, by table, where neither the schemas of events nor the comments of the migrations say it, or not all
# of it. A column that none of them explains stays empty.
COLUMNS = {
    "interactions": {
        **_EVENT,
        "conversation_id": "events that have it in common are one conversation",
        "latency_seconds": "time that the answer took, as the app measured it",
        "time_to_first_token_seconds": "time to the first token, as the app measured it",
        "input_tokens": "tokens of the prompt",
        "output_tokens": "tokens of the answer",
        "cost": "of the answer, in `roi.currency`",
        "finish_reason": "as the model server reports it",
    },
    "feedback": {
        **_EVENT,
        "interaction_id": "the answer that it is about; the feedback may come first",
        "source": "who says so: user, expert, judge or app",
    },
    "dead_letters": {**_PLACE, "payload": "the message, redacted; null: it was empty, or could not be redacted"},
    "offsets": {
        "topic": _PLACE["topic"],
        "partition": _PLACE["partition"],
        "next_offset": "the first one that was not read",
    },
    "datasets": {
        **_WORKLOAD,
        **_MADE,
        "path": "its folder",
        "train": "rows to train on",
        "validation": "rows that decide when training stops",
        "holdout": "rows that the gate judges on",
        "card": "all of `card.json`",
    },
    "dataset_rows": {
        "dataset_version": "the row of datasets",
        "split": "train, validation, holdout, regression or thumbs",
        "interaction_id": "the answer that the feedback is about",
    },
    "quarantine": {
        **_WORKLOAD,
        "feedback_id": "the row of feedback",
        "interaction_id": "the answer that the feedback is about",
        "created_at": "when it was set aside",
    },
    "runs": {
        **_WORKLOAD,
        "id": "unique; the name of its folder",
        "finished_at": "when it ended; null: it waits, is under way, or was interrupted",
        "dataset_version": "the row of datasets; null: none was made",
        "parent_version": "the version that training began from; null: the base model, or no dataset was made",
        "train_seconds": "wall time of the training",
        "evaluate_seconds": "wall time of the evaluation",
        "detail": "how it ended, as one object: scores, figures, reasons, what the training reported",
        "error": "why it failed, was refused or cancelled",
    },
    "pauses": {"created_at": "since when", "actor": "who asked for it", "reason": "why", "ended_by": "who ended it"},
    "evaluations": {
        **_WORKLOAD,
        "run_id": "the row of runs",
        "dataset_version": "the row of datasets",
        "row_id": "the row of dataset_rows",
        "token_f1": "F1 of the answer's tokens and those of the approved one",
        "latency_seconds": "time for the answer's tokens at the pace that the evaluation measured; null for logged "
        "answers",
        "output": "the answer",
        "topic": "of the row's question, as the dataset names topics; null: not known",
        "with_context": "the row has passages",
        "refused": "the answer refuses, and the approved one does not",
        "output_tokens": "tokens of the answer; null for logged answers",
    },
    "decisions": {
        **_WORKLOAD,
        **_MADE,
        "id": "unique",
        "outcome": "true: yes",
        "figures": "numbers behind the reasons",
        "run_id": "of the gate: the row of runs; null: of the policy",
    },
    "models": {
        **_WORKLOAD,
        **_MADE,
        "version": "hash of its content",
        "path": "its folder",
        "base_model": "folder of the base model, or the provider's name of it",
        "base_hash": "hash that tells base models apart",
        "parent_version": "the version that training began from; null: the base model",
        "dataset_version": "the dataset that it learned from",
        "run_id": "the run that made it",
        "manifest": "all of `manifest.json`",
    },
    "aliases": {**_WORKLOAD, "alias": "champion, previous or canary", "created_at": "since when"},
    "promotions": {
        **_WORKLOAD,
        "id": "unique; of the message, too",
        "created_at": "when it was changed",
        "event": "promoted and rolled_back, of the champion; canary: it got a share; canary_rolled_back; completed: "
        "the holdback has ended",
        "previous_version": "the version that served before, and answers the rest; of a rollback, what was taken "
        "back; null: the base model",
        "actor": "gate, approver (a person who approved what the gate passed), operator, watch or rollout",
        "reason": "why",
    },
    "rollouts": {
        **_WORKLOAD,
        "id": "unique; the experiment, by which conversations are assigned",
        "created_at": "when the first step began",
    },
    "rollout_checks": {**_WORKLOAD, **_MADE, "id": "unique", "version": "the canary"},
    "shadow_answers": {**_EVENT, "id": "unique"},
    "shadow_scores": {"scored_at": "when it was judged"},
    "approvals": {
        **_WORKLOAD,
        "id": "unique; of the message, too",
        "run_id": "the run that made the version",
        "requested_at": "when the gate passed it",
    },
    "label_requests": {**_WORKLOAD, "id": "unique; of the message, too", "created_at": "when it was asked"},
    "drift_checks": {
        **_WORKLOAD,
        **_MADE,
        "id": "unique; its report is `/reports/` and this",
        "reference_rows": "conversations of the reference that were compared",
        "current_rows": "conversations of the current window that were compared",
        "detail": "what moved, in a sentence",
    },
    "drift_references": {**_WORKLOAD, "reason": "why what was asked then is as usual"},
    "quality": {
        **_WORKLOAD,
        "created_at": "when it was measured",
        "metric": "name of the figure",
        "value": "of the figure",
        "low": "lower end of its 95% interval",
        "high": "upper end of its 95% interval",
        "n": "how many answers or pairs it is computed from",
    },
    "watch_checks": {
        **_WORKLOAD,
        **_MADE,
        "id": "unique",
        "version": "the champion that is watched",
        "previous_version": "the champion before it; null: the base model",
    },
    "ledger": {
        **_WORKLOAD,
        "id": "unique",
        "created_at": "when it was booked",
        "quantity": "how much, in the unit",
        "unit": "of the quantity",
        "period_end": "end of that period",
    },
    "ledger_left_out": {**_WORKLOAD, "created_at": "when it was left out"},
    "ledger_moments": {
        **_WORKLOAD,
        "conversations": "how many conversations",
        "interactions": "how many interactions",
        "gain": "sum over the conversations",
        "cost": "sum over the conversations",
        "interactions_squared": "sum of squares over the conversations",
        "gain_squared": "sum of squares over the conversations",
        "cost_squared": "sum of squares over the conversations",
        "gain_interactions": "sum of products over the conversations",
        "gain_cost": "sum of products over the conversations",
    },
    "ledger_outcomes": {**_WORKLOAD, "conversations": "how many"},
    "feedback_totals": {
        **_WORKLOAD,
        "source": "user, expert, judge or app",
        "total": "how much, since version 0.2.0",
    },
    "ledger_progress": {
        "topic": _PLACE["topic"],
        "partition": _PLACE["partition"],
        "next_offset": "the first one that was not booked",
        "booked_at": "when the ledger was last booked",
    },
    "ledger_position": {"booked_at": "when the ledger was last booked; null: never"},
    "rating_periods": {**_WORKLOAD},
    "blindness": {**_WORKLOAD, "monitor": "quality, policy or drift"},
    "answer_minutes": {**_WORKLOAD, "answers": "so many"},
    "judgements": {**_WORKLOAD, "interaction_id": "the answer that it is about", "feedback_id": "the feedback"},
    "groundings": {**_WORKLOAD, "interaction_id": "the answer", "created_at": "when it was looked at"},
    "batches": {"last": "the number"},
    "ingest_resumptions": {"resumed_at": "when it was asked for"},
    "archives": {
        "rows": "how many rows it holds",
        "first_received_at": "when the first of its rows was received",
        "last_received_at": "when the last of its rows was received",
        "archived_at": "when it was written",
    },
    "schema_migrations": {
        "number": "of the migration",
        "name": "of its file",
        "applied_at": "when it was applied",
    },
    "votes": {
        "id": "of the feedback",
        "timestamp": "of the feedback",
        "interaction_id": "the answer that it is about",
        "name": "`helpful` or `hallucination`",
        "value": "whether it is so",
    },
}
# The same of the API: fields by object, parameters by operation, where the OpenAPI document describes none.
FIELDS = {
    "Status.version": "the installed version of retuned",
    "Status.running": "a daemon answers",
    "Status.ingestion": "the state of ingestion",
    "Status.storage.file": "the warehouse's file",
    "Status.storage.used": "what is used of it",
    "Status.storage.log": "its write-ahead log",
    "Status.jobs": "what failed",
    "Status.currency": "of all amounts",
    "Status.workloads": "by name",
    "Workload.previous": "the champion before it; null: the base model, or none",
    "Workload.drift": "the latest checks",
    "Workload.runs": "the latest retrainings, with state and error",
    "Workload.labels": "requests for labels",
    "Status.queue[].run_id": "the row of runs",
    "Status.queue[].workload": "that is to be retrained",
    "Status.queue[].reason": "the same in words, with the way out",
    "Status.pauses[].created_at": "since when",
    "Status.pauses[].actor": "who asked for it",
    "Status.pauses[].reason": "why",
    "Workload.labels.open": "not answered yet",
    "Workload.labels.answered": "answered by experts",
    "Workload.reports": "of months and quarters",
    "Approval.id": "unique",
    "Approval.workload": "the kind of request",
    "Approval.run_id": "the run that made the version",
    "Approval.requested_at": "when the gate passed it",
    "Approval.state": "waiting, or how it was settled",
    "LabelRequest.id": "unique",
    "LabelRequest.timestamp": "when it was asked",
    "LabelRequest.workload": "the kind of request",
    "LabelRequest.model": "the model that answered, as it is served",
    "LabelRequest.messages": "the prompt",
    "LabelRequest.answer": "what the model answered, with its calls of tools",
    "LabelRequest.tools": "the tools that the model was offered, as OpenAI's chat API has them",
    "LabelRequest.context": "passages that the model was given; null: none",
    "LabelRequest.reason": "the weightiest: `uncertain`, `unreadable`, `ungrounded`, `new_topic` or `disagreeing`; or "
    "`calibration`",
    "Ingestion.broker_up": "whether the broker answers; null: no daemon is running",
    "Ingestion.lag_events": "events that wait on the broker; null: no daemon is running",
    "Ingestion.last_event_at": "when the last event was stored; null: none since the daemon's start",
    "Ingestion.set_aside[].topic": "of its messages",
    "Ingestion.set_aside[].workload": "that its messages name; null: they name none",
    "Ingestion.set_aside[].messages": "its last messages, over which that is counted",
    "Ingestion.set_aside[].since": "when it was set aside",
    "Ingestion.passed_over[].reason": "a code, as the page on events lists them",
    "Ingestion.passed_over[].count": "how many since the daemon's start",
    "Ingestion.passed_over[].explanation": "the reason in words",
    "DeadLetter.topic": _PLACE["topic"],
    "DeadLetter.partition": _PLACE["partition"],
    "DeadLetter.offset": _PLACE["offset"],
    "DeadLetter.reason": "a code, as Operate lists them",
    "DeadLetter.detail": "what is wrong, in words",
    "DeadLetter.payload": "the message, redacted; null: it was empty, or could not be redacted",
    "DeadLetter.received_at": "when it was stored",
}
PARAMETERS = {
    "deadLetters.limit": "the newest so many",
    "export.what": "a table that can be exported, or a training set",
    "export.format": "of the answer",
    "export.workload": "rows of this workload alone; of an unknown one there are none",
    "command.workload": "a workload that has events",
    "command.command": "what to do",
    "commandOfAll.command": "what to do",
}
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
    "base_model": "folder, or the provider's name, of the base model that the new champion was trained on; where that "
    "is the base model itself, of the one that the champion before was trained on",
    "provider_model": "the name to ask the provider for, where a provider has the new champion; else null",
    "share": "share of the conversations that it answers; 1.0: all",
    "experiment": "of a rollout, by which conversations are assigned; null: of none",
    "reason": "why it was changed, or what waits until when, or how that ended",
    "approval": "of a request for approval alone: its `id`, `version` and `model` of what it is about, `expires_at`, "
    "`actor` and `reason` of a refusal",
}
# What an app sees that /api/v1 does not have.
OTHER_ROUTES = {
    "GET /healthz": "200 while the process is sound, else 503 with the reason. Restart the daemon then.",
    "GET /readyz": "200 while events flow, else 503 with the reason, also while the broker is away or a topic is "
    "missing.",
    "GET /metrics": "[Metrics](metrics.md) for Prometheus; who asks for OpenMetrics by `Accept` gets exemplars, too.",
    "GET /": "The status page.",
    "GET /interactions/{id:path}": "An interaction, as HTML: the conversation as stored, redacted, its figures, "
    "feedback, grounding, the model that answered, and where it was used in training.",
    "GET /approvals/{id}": "A request for approval, with what the gate found, for people who decide on it.",
    "POST /approvals/{id}": "The form of that page: `decision` and `reason`.",
    "GET /reports/{id}": "A report of a drift check, of a month or of a quarter, as HTML.",
}
COMMON_OPTIONS = ("config", "verbose")
REFUSALS = {
    "400": "A parameter or the body is malformed.",
    "401": "No token, or none that is known or still valid.",
    "403": "The token's role does not suffice, or a page of another site sent the request.",
    "404": "Nothing has that name or id.",
    "409": "It cannot be done now, or not so.",
    "413": "The body is too large.",
    "415": "A command is a JSON object with the content type `application/json`.",
    "429": "Too many wrong tokens came from the address; `Retry-After` has the seconds to wait.",
}


def files() -> dict[str, str]:
    """The text of each page of docs/reference."""
    pages = {
        "cli.md": cli(),
        "configuration.md": configuration(),
        "http.md": http(),
        "metrics.md": metrics(),
        "tables.md": tables(),
        "events.md": events(),
    }
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in pages.items()}


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
    """A text that begins as a sentence does and ends with a full stop."""
    found = text(written)
    if not found:
        return ""
    return found[:1].upper() + found[1:] + ("" if found.endswith((".", ":", "…")) else ".")


def named(name: str, anchor: str | None = None) -> str:
    """A name in code font that a link can lead to."""
    return f'<a id="{anchor or name}"></a>`{name}`'


# Command line


def cli() -> list[str]:
    """The commands, from the parser."""
    lines = page(
        "Command line",
        "Commands ask the running daemon, by the port and the tokens of the configuration; `status`, `dead-letters`,",
        "`labels`, `import`, `export`, `lineage`, `retrain`, `approve`, `promote`, `rollback` and `report` open the",
        "warehouse themselves when no daemon is running. [Exit codes](../operate.md#exit-codes) are the same for all",
        "of them. `retuned --version` prints the version.",
    )
    commands = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in commands._choices_actions}
    lines += table(
        ("command", "what it does"),
        ((f"[`retuned {name}`](#retuned-{name})", sentence(helps[name])) for name in commands.choices),
    )
    lines += ["## Options of every command", ""]
    lines += table(
        ("option", "meaning"),
        ((_argument("options", one), _meaning(one)) for one in _options_of_all(commands.choices)),
    )
    for name, command in commands.choices.items():
        arguments = _own(command, COMMON_OPTIONS)
        positional = [_placeholder(argument) for argument in arguments if not argument.option_strings]
        usage = " ".join(["retuned", name, *positional, "[OPTION…]"])
        lines += [f"## retuned {name}", "", "```", usage, "```", "", sentence(command.description or ""), ""]
        if arguments:
            lines += table(("argument", "meaning"), ((_argument(name, one), _meaning(one)) for one in arguments))
    return lines


def _options_of_all(commands: Mapping[str, argparse.ArgumentParser]) -> list[argparse.Action]:
    """The options of COMMON_OPTIONS, as any command has them."""
    return [one for one in _own(commands["check"], ()) if one.dest in COMMON_OPTIONS]


def _own(command: argparse.ArgumentParser, others: Iterable[str]) -> list[argparse.Action]:
    """The arguments of a command without the others, positional ones first."""
    found = [one for one in command._actions if not isinstance(one, argparse._HelpAction) and one.dest not in others]
    return sorted(found, key=lambda one: bool(one.option_strings))


def _placeholder(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest.upper())
    if action.nargs == "?" and not action.option_strings:
        return f"[{name}]"
    return f"{name}…" if action.nargs == "+" else name


def _argument(command: str, action: argparse.Action) -> str:
    placeholder = _placeholder(action).replace("|", " or ")
    value = "" if action.nargs == 0 else f" {placeholder}"
    names = [f"`{name}{value}`" for name in action.option_strings] or [f"`{placeholder}`"]
    return f'<a id="{command}.{action.dest}"></a>{", ".join(names)}'


def _meaning(action: argparse.Action) -> str:
    known = {
        "workload": "a workload that has events",
        "version": "a version of it, or `base`",
        "files": "one or more",
        "user": "as the app names the user",
    }
    choices = "One of " + ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else ""
    about = action.help or known.get(action.dest, "")
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
        "`RETUNED__KAFKA__BOOTSTRAP_SERVERS`. Keep secrets there, or in files that `…_file` keys name.",
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
        for kinds, meaning, keys_of in targets() if name == "serving" else ():
            lines += [f"### Targets of the kind {kinds}", "", text(meaning), ""]
            of_kind = ((f"`{key.name}`", f"`{key.default}`", sentence(key.meaning)) for key in keys_of)
            lines += table(("key", "default", "meaning"), of_kind) if keys_of else []
    return lines


# HTTP


def http() -> list[str]:
    """The routes, from the OpenAPI document."""
    document = openapi.document((one.method, one.path, one.least) for one in ROUTES)
    roles = {f"{one.method} {one.path}": one.least or "anybody" for one in ROUTES}
    lines = page(
        "HTTP", text(document["info"]["description"]), "", "`/api/v1/openapi.json` is this API as OpenAPI 3.1."
    )
    lines += ["## Roles", "", "Each role may do what those above it may.", ""]
    lines += table(("role", "what it may do"), ((named(role), sentence(about)) for role, about in ROLES.items()))
    lines += ["## Pages, metrics, health", ""]
    lines += table(
        ("route", "least role", "what it answers"),
        (
            (named(shown, shown.removeprefix("GET ")), roles[route], about)
            for route, about in OTHER_ROUTES.items()
            for shown in (re.sub(r":\w+}", "}", route),)
        ),
    )
    lines += ["## API", ""]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    lines += table(
        ("route", "least role", "what it does"),
        (
            (f"[`{method.upper()} {path}`](#api-{one['operationId']})", _role(one), sentence(one["summary"]))
            for path, method, one in operations
        ),
    )
    for path, method, one in operations:
        lines += [f'<a id="api-{one["operationId"]}"></a>', "", f"### {method.upper()} {path}", ""]
        lines += [f"{sentence(one['summary'])} **Role**: {_role(one)}.", ""]
        if given := _given(one):
            lines += table(("parameter", "where", "type", "meaning"), given)
        lines += [_answer(one), ""]
    lines += ["## Refusals", "", 'The body is `{"error": "…"}`: why it was not done, and the way out.', ""]
    lines += table(("status", "why"), ((named(code), about) for code, about in REFUSALS.items()))
    lines += ["## Objects", ""]
    for name, schema in document["components"]["schemas"].items():
        lines += [f"### {name}", ""]
        lines += [sentence(schema["description"]), ""] if "description" in schema else []
        lines += table(("field", "type", "meaning"), _fields(name, schema))
    return lines


def _role(operation: dict[str, Any]) -> str:
    """The least role of an operation."""
    (role,) = operation["security"][-1]["basic"]
    return str(role)


def _given(operation: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = [
        (
            f"`{one['name']}`",
            one["in"],
            _type(one["schema"]),
            sentence(one.get("description") or PARAMETERS.get(f"{operation['operationId']}.{one['name']}", "")),
        )
        for one in operation.get("parameters", ())
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows += [
        (f"`{name}`", "body, JSON", _type(one), sentence(one["description"]))
        for name, one in body.get("properties", {}).items()
    ]
    return rows


def _answer(operation: dict[str, Any]) -> str:
    """What a success is, and the statuses of refusals."""
    done = operation["responses"]["200"]
    kinds = [f"`{kind}`" + _shape(content["schema"]) for kind, content in done["content"].items()]
    refusals = ", ".join(f"[{code}](#{code})" for code in operation["responses"] if code != "200")
    return f"**200**: {sentence(done['description'])} {', '.join(kinds)}. **Refusals**: {refusals}."


def _shape(schema: dict[str, Any]) -> str:
    kind = _type(schema)
    if kind not in ("object", "text", "bytes"):
        return f": {kind}"
    return f": {', '.join(f'`{name}`' for name in schema['properties'])}" if "properties" in schema else ""


def _fields(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name, one in schema.get("properties", {}).items():
        field = f"{path}.{name}"
        about = sentence(one.get("description") or FIELDS.get(field, ""))
        yield f'<a id="{field}"></a>`{field.partition(".")[2]}`', _type(one), about
        inner = one.get("items", one)
        suffix = "[]" if "items" in one else ""
        yield from _fields(field + suffix, inner)


def _type(schema: dict[str, Any]) -> str:
    """The type of a JSON Schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
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
    if schema.get("format") == "binary":
        return "bytes"
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
            for collector in vars(group).values()
            for name, kind, labels, about in _families(collector)
        )
        lines += table(("metric", "type", "meaning and labels"), rows)
    return lines


def _labels(labels: Iterable[str]) -> str:
    names = ", ".join(f"`{label}`" for label in labels)
    return f" By {names}." if names else ""


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
    """Every table and view of a new warehouse; meanings are the comments of the migrations."""
    lines = page(
        "Tables",
        "The warehouse is one DuckDB file, and one process opens it. While the daemon runs, read a table with",
        "[`retuned export`](cli.md#retuned-export); when it does not, open the file with any DuckDB (`ATTACH` it: the",
        "tables are in its schema `main`). All times are UTC, without a zone. Events leave for the",
        "[archive](../operate.md#retention-and-archive).",
    )
    found, meanings = _columns(), _meanings()
    if found.keys() != TABLES.keys():
        raise SystemExit(f"TABLES in docs/generate.py: what is a row of {', '.join(found.keys() ^ TABLES.keys())}?")
    lines += table(
        ("table", "a row is", "export"),
        ((f"[`{name}`](#{name})", text(about), "yes" if name in EXPORTED else "") for name, about in TABLES.items()),
    )
    for name in TABLES:
        lines += [f"## {name}", "", text(TABLES[name]), ""]
        rows = (
            (
                named(column, f"{name}.{column}"),
                kind + (", null" if nullable else ""),
                text(meanings.get((name, column)) or meanings.get((VIEWED.get(name, name), column), "")),
            )
            for column, kind, nullable in found[name]
        )
        lines += table(("column", "type", "meaning"), rows)
    known = {(name, column) for name, columns in found.items() for column, _, _ in columns}
    if gone := {(name, column) for name, columns in COLUMNS.items() for column in columns} - known:
        raise SystemExit(f"COLUMNS in docs/generate.py: no such column: {sorted(gone)}")
    return lines


def _columns() -> dict[str, list[tuple[str, str, bool]]]:
    """Name, type and whether it may be null, of each column of each table and view."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = open_warehouse(WarehouseSettings(path=Path(folder) / "retuned.duckdb"))
        rows = warehouse.rows(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() "
            "WHERE database_name = 'retuned' AND NOT internal ORDER BY table_name, column_index"
        )
        views = {row["view_name"] for row in warehouse.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")}
        warehouse.close()
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for row in rows:
        name = row["table_name"]
        found.setdefault(name, []).append(
            (row["column_name"], row["data_type"], row["is_nullable"] and name not in views)
        )
    return found


def _meanings() -> dict[tuple[str, str], str]:
    """What a column of a table means: by COLUMNS, else by the migrations, else by the schemas of events."""
    found = {}
    for table_name, schema in (("interactions", "interaction"), ("feedback", "feedback")):
        for field, one in json.loads((SCHEMAS / f"{schema}.schema.json").read_text())["properties"].items():
            if field != "timestamp" and (about := _description(one)):  # the column has a type of its own
                found[table_name, field] = about
    table_name = ""
    for file in sorted(MIGRATIONS.iterdir(), key=lambda file: file.name):
        for line in file.read_text(encoding="utf-8").splitlines() if file.name.endswith(".sql") else ():
            if made := re.match(r"(?:CREATE|ALTER) (?:TABLE|VIEW) (\w+)", line):
                table_name = made[1]
            if commented := re.match(r'(?:ALTER TABLE \w+ ADD COLUMN|\s+)\s*"?([a-z_\d]+)"? .*?-- (.+)', line):
                found[table_name, commented[1]] = commented[2]
    return found | {(name, column): about for name, columns in COLUMNS.items() for column, about in columns.items()}


# Events


def events() -> list[str]:
    """The events that apps publish, from their schemas."""
    lines = page(
        "Events",
        "Two topics, one JSON object a message, keyed by conversation or user: `kafka.interactions_topic` and",
        "`kafka.feedback_topic`. The JSON Schemas are in `deploy/schemas`. [Formats](../formats.md) has the other",
        "formats that are understood.",
    )
    for name, stored in (("interaction", "interactions"), ("feedback", "feedback")):
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
        lines += [f"## {schema['title']}", "", text(schema["description"]), ""]
        rows = []
        for field, one in schema["properties"].items():
            default = one.get("default")
            needed = "required" if field in schema["required"] else f"default `{default}`" if default else ""
            kind = _type(one).removesuffix(" or null")
            about = sentence(_description(one) or COLUMNS[stored].get(field, ""))
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
    lines += ["## Label request", "", "An answer that experts are asked to judge, on `kafka.label_requests_topic`:", ""]
    lines += [
        "the object [LabelRequest](http.md#labelrequest). The answer to it is feedback of the source `expert`.",
        "",
    ]
    return lines


def _description(schema: dict[str, Any]) -> str | None:
    choices: list[dict[str, Any]] = [schema, *schema.get("anyOf", ())]
    return next((one["description"] for one in choices if "description" in one), None)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
