"""The dashboards, as code: `python deploy/grafana/build.py` writes dashboards/*.json, which Grafana gets.

Five of them, for who asks: which workload needs somebody (fleet), is the daemon sound (operations), are the answers
good (quality), does it learn (learning), does it pay (business)? A test compares the files with what this makes, and
runs every query in a live Prometheus.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
SHARE, SECONDS, BYTES, BYTES_A_SECOND, COUNT = "percentunit", "s", "bytes", "Bps", "short"
EVENTS, MESSAGES, REQUESTS, ROWS = "eps", "mps", "reqps", "cps"
"""Rates of these, by the second."""
ANSWERS, TOKENS = "suffix: answers/s", "suffix: tokens/s"
GIBIBYTE = 1024.0**3
OF_WORKLOAD = 'workload=~"$workload"'
OF_ALL = f'{OF_WORKLOAD}, model_name="*"'
OF_VERSION = f'{OF_WORKLOAD}, model_name=~"$version"'

FIRING = 'ALERTS{alertname=~"Retuned.+", alertstate="firing"}'
CONSOLE = "${console}/workloads/%s?since=${__from:date:YYYY-MM-DD}&until=${__to:date:YYYY-MM-DD}"
"""The console's page of a workload, for the days that the dashboard shows."""

Query = tuple[str, str]
"""PromQL, and the legend of its series."""
Steps = Sequence[tuple[float | None, str]]
"""Colours, each from a value on; None: the lowest one."""
PLAIN: Steps = ((None, "text"),)
GAIN_OR_LOSS: Steps = ((None, "red"), (0, "green"))


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = COUNT,
    least: float | None = 0,
    most: float | None = None,
    stacked: bool = False,
    exemplars: bool = False,
    limit: float | None = None,
) -> timeseries.Panel:
    """Curves over time; eight columns wide, so that three stand side by side.

    With exemplars, of metrics that have them: points that lead to the page of an interaction. A dashed line is at the
    limit, where an alert or the daemon acts. A curve of a workload leads to its page of the console.
    """
    panel = (
        timeseries.Panel()
        .unit(unit)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
    )
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL)).fill_opacity(20)
    if limit is not None:
        panel.thresholds(_steps(((None, "transparent"), (limit, "red"))))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED))
    if any("{{workload}}" in legend for _, legend in queries):
        panel.data_links([_link("Console: ${__field.labels.workload}", CONSOLE % "${__field.labels.workload}")])
    _fill(panel, title, description, queries, width=8, exemplars=exemplars)
    return panel


def number(
    title: str,
    description: str,
    query: Query,
    unit: str = COUNT,
    decimals: int | None = None,
    width: int = 4,
    steps: Steps = PLAIN,
) -> stat.Panel:
    """One value for each series, with its course behind it, coloured where a value is good or bad."""
    panel = (
        stat.Panel()
        .unit(unit)
        .color_mode(common_models.BigValueColorMode.VALUE)
        .thresholds(_steps(steps))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )
    if "{{workload}}" in query[1]:
        panel.data_links([_link("Console: ${__field.labels.workload}", CONSOLE % "${__field.labels.workload}")])
    if decimals is not None:
        panel.decimals(decimals)
    _fill(panel, title, description, [query], width=width)
    return panel


def light(title: str, description: str, query: str, *, bad: str, good: str) -> stat.Panel:
    """Red at 0 and green at 1, in words."""
    panel = (
        stat.Panel()
        .color_mode(common_models.BigValueColorMode.BACKGROUND)
        .mappings([_words({"0": (bad, None), "1": (good, None)})])
        .thresholds(_steps(((None, "red"), (1, "green"))))
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    )
    _fill(panel, title, description, [(query, "")], width=4, instant=True)
    return panel


def states(title: str, description: str, query: Query, names: dict[str, tuple[str, str | None]]) -> statetimeline.Panel:
    """What was the case when: a name and a colour for each value."""
    panel = statetimeline.Panel().mappings([_words(names)])
    _fill(panel, title, description, [query], width=8)
    return panel


def rows(title: str, description: str, query: str, columns: Sequence[str], width: int = 8) -> table.Panel:
    """The labels of the series that there are, one row each."""
    hidden = dict.fromkeys(("Time", "Value", "__name__", "instance", "job"), True)
    order = {name: place for place, name in enumerate(columns)}
    panel = table.Panel().transformations(
        [models.DataTransformerConfig(id_val="organize", options={"excludeByName": hidden, "indexByName": order})]
    )
    _fill(panel, title, description, [(query, "")], width=width, instant=True, format_val=PromQueryFormat.TABLE)
    return panel


def workloads(title: str, description: str, columns: Sequence[tuple[str, str, str, Steps]]) -> table.Panel:
    """A row for each workload; of each column its name, PromQL with a value a workload, unit and colours."""
    letters = "ABCDEFGHIJ"[: len(columns)]
    names = {f"Value #{letter}": name for letter, (name, *_) in zip(letters, columns, strict=True)}
    panel = table.Panel().transformations(
        [
            models.DataTransformerConfig(id_val="joinByField", options={"byField": "workload", "mode": "outer"}),
            models.DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True} | {f"Time {number}": True for number in range(1, len(columns) + 1)},
                    "renameByName": names,
                },
            ),
        ]
    )
    links = [
        _link("Quality of ${__value.raw}", "/d/retuned-quality?var-workload=${__value.raw}&${__url_time_range}"),
        _link("Console: ${__value.raw}", CONSOLE % "${__value.raw}"),
    ]
    panel.override_by_name(
        "workload", [models.DynamicConfigValue(id_val="links", value=[link.build() for link in links])]
    )
    for name, _, unit, steps in columns:
        panel.override_by_name(
            name,
            [
                models.DynamicConfigValue(id_val="unit", value=unit),
                models.DynamicConfigValue(id_val="thresholds", value=_steps(steps).build()),
                models.DynamicConfigValue(
                    id_val="custom.cellOptions", value={"type": "auto" if steps is PLAIN else "color-text"}
                ),
            ],
        )
    queries = [(query, "") for _, query, _, _ in columns]
    _fill(panel, title, description, queries, width=24, instant=True, format_val=PromQueryFormat.TABLE)
    return panel.height(12)


def _steps(steps: Steps) -> dashboard.ThresholdsConfig:
    made = [models.Threshold(color=color, value=value) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def _link(title: str, url: str) -> dashboard.DashboardLink:
    return dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).target_blank(True)


def _fill(
    panel: Any,
    title: str,
    description: str,
    queries: Sequence[Query],
    *,
    width: int,
    instant: bool = False,
    format_val: PromQueryFormat | None = None,
    exemplars: bool = False,
) -> None:
    panel.title(title).description(description).datasource(SOURCE).span(width).height(4 if width == 4 else 8)
    for letter, (expression, legend) in zip("ABCDEFGHIJ", queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend)
        if instant:
            target.instant()
        if exemplars:
            target.exemplar(True)
        if format_val is not None:
            target.format(format_val)
        panel.with_target(target)


def _words(names: dict[str, tuple[str, str | None]]) -> models.ValueMap:
    options = {
        value: models.ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(names.items())
    }
    return models.ValueMap(options=options)


def board(
    name: str, question: str, panels: Sequence[Any], *, version: bool = True, money: bool = False
) -> dashboard.Dashboard:
    """A dashboard with what all have: data source, workload, version, promotions and rollbacks, links to the others and
    to the console; with `money` titles may name the $currency."""
    made = (
        dashboard.Dashboard(f"retuned: {name}")
        .uid(f"retuned-{name}")
        .description(question)
        .tags(["retuned"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .timezone("browser")
        .refresh("30s")
        .time("now-24h", "now")
        .link(
            dashboard.DashboardLink("retuned")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["retuned"])
            .keep_time(True)
            .include_vars(True)
        )
        .link(_link("Console", "${console}/"))
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            _variable("workload", "Workload", "label_values(retuned_drift_check_timestamp_seconds, workload)")
        )
    )
    made.with_variable(
        dashboard.TextBoxVariable("console")
        .label("Console")
        .description("Where browsers reach the daemon")
        .default_value("http://localhost:8321")
        .current(models.VariableOption(text="http://localhost:8321", value="http://localhost:8321"))
    )
    if money:
        made.with_variable(
            dashboard.QueryVariable("currency")
            .datasource(SOURCE)
            .query({"query": "label_values(retuned_currency_info, currency)", "refId": "currency"})
            .refresh(models.VariableRefresh.ON_DASHBOARD_LOAD)
            .hide(models.VariableHide.HIDE_VARIABLE)
        )
    if version:
        models_of = f"label_values(retuned_model_info{{{OF_WORKLOAD}}}, model_name)"
        made.with_variable(_variable("version", "Version", models_of))
    for event, title, colour in (
        ("promoted", "Promotions", "blue"),
        ("canary", "Canary steps", "purple"),
        ("(canary_)?rolled_back", "Rollbacks", "red"),
    ):
        made.annotation(
            dashboard.AnnotationQuery()
            .name(title)
            .enable(True)
            .datasource(SOURCE)
            .icon_color(colour)
            .expr(f'increase(retuned_promotions_total{{{OF_WORKLOAD}, event=~"{event}"}}[$__rate_interval]) > 0')
        )
    for place, panel in enumerate(panels, start=1):
        made.with_panel(panel.id(place))
    return made


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .current(models.VariableOption(text="All", value="$__all"))
    )


def quantile(share: float, metric: str, by: str = "", of: str = "") -> str:
    """PromQL of a quantile of a histogram over the last minutes, for each value of a label."""
    labels, chosen = f"{by}, le" if by else "le", f"{{{of}}}" if of else ""
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket{chosen}[$__rate_interval])))"


def interval_of(rate: str) -> str:
    """PromQL of the ends of the 95% interval of a rate."""
    return f'retuned_rate_interval_ratio{{{OF_WORKLOAD}, rate="{rate}"}}'


def fleet() -> dashboard.Dashboard:
    """Which workload needs somebody?"""
    of_users = f'max by (workload) (retuned_helpful_ratio{{{OF_ALL}, source="user"}}%s)'
    helpful, change = of_users % "", f"{of_users % ''} - {of_users % ' offset 7d'}"
    answers = (
        f"max by (workload) (sum by (workload, instance) (rate(retuned_interactions_total{{{OF_WORKLOAD}}}"
        "[$__rate_interval])))"
    )
    some: Steps = ((None, "text"), (1, "orange"))
    panels = [
        number(
            "Alerts that fire",
            "Alerts on retuned that fire now; the list below names them.",
            (f"count({FIRING}) or vector(0)", ""),
            steps=((None, "green"), (1, "red")),
        ),
        number(
            "Workloads",
            "Workloads that are measured: all of them, or the 50 busiest.",
            (f"count(max by (workload) (retuned_drift_check_timestamp_seconds{{{OF_WORKLOAD}}}))", ""),
        ),
        number(
            "Wait for approval",
            "Versions and datasets that wait for a person.",
            (f"sum(max by (workload) (retuned_approvals_waiting{{{OF_WORKLOAD}}}))", ""),
            steps=some,
        ),
        number(
            "Asked of experts",
            "Answers that experts are asked to judge and have not yet.",
            (f"sum(max by (workload) (retuned_label_requests_open{{{OF_WORKLOAD}}}))", ""),
        ),
        number(
            "In training",
            "Retrainings under way.",
            (f"count(max by (workload) (retuned_training_active_timestamp_seconds{{{OF_WORKLOAD}}})) or vector(0)", ""),
        ),
        number(
            "Net gain ($currency)",
            "Gains less costs of these workloads since the ledger began.",
            (f"sum({_net_gain('')})", ""),
            decimals=2,
            steps=GAIN_OR_LOSS,
        ),
        workloads(
            "Each workload",
            "Its name leads to its dashboard and to its page of the console. Helpful: share of the rated answers that "
            "users called helpful. Change: in a week. Invented: share of the judged answers. "
            "Drift: 1 where the latest check found it. Blind: monitors that have too few rows. "
            "Net gain: since the ledger began, in $currency.",
            (
                ("Helpful", helpful, SHARE, ((None, "red"), (0.6, "text"))),
                ("Change", change, SHARE, ((None, "red"), (-0.05, "text"), (0.05, "green"))),
                (
                    "Invented",
                    f"max by (workload) (retuned_hallucination_ratio{{{OF_ALL}}})",
                    SHARE,
                    ((None, "text"), (0.2, "red")),
                ),
                ("Drift", f"max by (workload) (retuned_drift_detected{{{OF_WORKLOAD}}})", COUNT, some),
                ("Answers", answers, ANSWERS, PLAIN),
                ("Blind", f"sum by (workload) (retuned_monitor_blind{{{OF_WORKLOAD}}})", COUNT, some),
                ("Approvals", f"max by (workload) (retuned_approvals_waiting{{{OF_WORKLOAD}}})", COUNT, some),
                ("Labels", f"max by (workload) (retuned_label_requests_open{{{OF_WORKLOAD}}})", COUNT, PLAIN),
                ("Net gain", _net_gain(""), COUNT, GAIN_OR_LOSS),
            ),
        ),
        rows(
            "Alerts",
            "Alerts on retuned that fire now, as Prometheus has them.",
            FIRING,
            ("severity", "alertname", "workload"),
            width=24,
        ),
    ]
    return board("fleet", "Which workload needs somebody?", panels, version=False, money=True)


def operations() -> dashboard.Dashboard:
    """Is the daemon sound?"""
    panels = [
        light("Daemon", "Whether Prometheus can scrape the daemon.", 'up{job="retuned"}', bad="down", good="up"),
        light(
            "Broker",
            "Whether Kafka answers the daemon. While it does not, events wait there and nothing is lost.",
            "retuned_broker_up",
            bad="away",
            good="up",
        ),
        number(
            "Lag",
            "Events on the broker that are not stored yet. Growing for long: they come faster than they are written.",
            ("retuned_ingest_lag_events", ""),
            decimals=0,
            steps=((None, "green"), (10_000, "orange")),
        ),
        number(
            "Last event",
            "Time since an event was last stored. Long, with no lag: the apps send nothing.",
            ("time() - retuned_ingest_last_event_timestamp_seconds", ""),
            SECONDS,
            steps=((None, "green"), (3_600, "orange")),
        ),
        number(
            "Free disk",
            "Free space where the warehouse is. Below 2 GiB an alert fires; on a full disk the daemon stops.",
            ("retuned_disk_free_bytes", ""),
            BYTES,
            steps=((None, "red"), (2 * GIBIBYTE, "orange"), (10 * GIBIBYTE, "green")),
        ),
        number("Version", "The version of retuned that is running.", ("retuned_build_info", "{{version}}")).text_mode(
            common_models.BigValueTextMode.NAME
        ),
        lines(
            "Events",
            "Messages read from each topic, dead letters and duplicates among them.",
            ("sum by (topic) (rate(retuned_events_total[$__rate_interval]))", "{{topic}}"),
            unit=EVENTS,
        ),
        lines(
            "Answers",
            "Interactions read a second, by workload. One that falls silent shows here.",
            (
                # A standby of a cluster counts the same answers as its leader.
                "max by (workload) (sum by (workload, instance) "
                f"(rate(retuned_interactions_total{{{OF_WORKLOAD}}}[$__rate_interval])))",
                "{{workload}}",
            ),
            unit=ANSWERS,
        ),
        lines(
            "Service levels of the last hour",
            "Shares that were bad: answers that took longer than 8 s, by workload, and of the time, that events waited "
            "for more than five minutes. Of each 1% is the aim in a month; alerts tell when it is missed fast.",
            (f"workload:retuned_answers_slow:ratio_rate1h{{{OF_WORKLOAD}}}", "{{workload}} slow answers"),
            ("max(job:retuned_ingest_late:ratio1h)", "late events"),
            unit=SHARE,
            limit=0.01,
        ),
        lines(
            "Waiting",
            "How long the oldest event of each topic that was not read yet has waited on the broker, at most.",
            ("max by (topic) (retuned_ingest_lag_seconds)", "{{topic}}"),
            unit=SECONDS,
            limit=900,
        ),
        lines(
            "Dead letters, duplicates, lost events",
            "Messages that are no events, by reason (the table dead_letters holds them), what is known to be none, "
            "events that were sent twice, and events that the broker deleted before they were read or holds broken, "
            "and topics that were made anew.",
            ("sum by (reason) (rate(retuned_dead_letters_total[$__rate_interval]))", "{{reason}}"),
            ("sum(rate(retuned_event_duplicates_total[$__rate_interval]))", "duplicates"),
            ("sum by (topic) (rate(retuned_events_lost_total[$__rate_interval]))", "lost from {{topic}}"),
            ("sum(rate(retuned_events_erased_total[$__rate_interval]))", "erased before"),
            ("sum by (topic) (rate(retuned_topics_remade_total[$__rate_interval]))", "made anew: {{topic}}"),
            ("sum by (reason) (rate(retuned_events_passed_over_total[$__rate_interval]))", "passed over: {{reason}}"),
            unit=MESSAGES,
        ),
        lines(
            "Producers set aside",
            "Workloads on a topic most of whose last messages are dead letters; `retuned dead-letters` names them.",
            ("sum by (topic) (retuned_producers_set_aside)", "{{topic}}"),
        ),
        lines(
            "Time to store a batch",
            "From a batch being read to its being stored, in one transaction: median and 95th percentile.",
            *(
                (quantile(share, "retuned_ingest_batch_seconds"), legend)
                for share, legend in ((0.5, "median"), (0.95, "95%"))
            ),
            unit=SECONDS,
        ),
        lines(
            "Redactions",
            "Pieces of personal data replaced before storage, by kind. A sudden rise: a producer sends more.",
            ("sum by (kind) (rate(retuned_redactions_total[$__rate_interval]))", "{{kind}}"),
            unit=ROWS,
        ),
        lines(
            "Jobs",
            "Runs of the scheduled jobs in the last hour, by outcome, and how often each failed since it last "
            "succeeded.",
            ("sum by (task, outcome) (increase(retuned_job_runs_total[1h]))", "{{task}} {{outcome}}"),
            ("retuned_job_consecutive_failures > 0", "{{task}} failed in a row"),
        ),
        lines(
            "Since the last success",
            "Time since each job last succeeded, and since the ingest loop last came round. What a job computes is as "
            "old as this.",
            ("time() - retuned_job_last_success_timestamp_seconds", "{{task}}"),
            ("time() - retuned_ingest_last_progress_timestamp_seconds", "ingestion"),
            unit=SECONDS,
        ),
        lines(
            "Warehouse",
            "The file, what of it is used (the rest is free for new events; the file itself seldom shrinks), and the "
            "write-ahead log.",
            ("retuned_warehouse_bytes", "{{part}}"),
            unit=BYTES,
        ),
        lines(
            "Archived rows",
            "Rows that left the warehouse for Parquet files, by table.",
            ("retuned_archived_rows", "{{table}}"),
        ),
        lines(
            "Size of the archive",
            "Bytes of the files of the archive, by table. It only grows: move old days elsewhere when the disk fills.",
            ("retuned_archived_bytes", "{{table}}"),
            unit=BYTES,
        ),
        lines(
            "Warnings",
            "What needs attention and stops nothing, as `retuned status` lists it: a broken file of principals, a "
            "certificate that has expired or cannot be renewed.",
            ("retuned_warnings", "warnings"),
        ),
        lines(
            "Removed by retention",
            "What retention removed an hour, by kind: versions, datasets and folders of runs, and rows of tables.",
            ("sum by (kind) (increase(retuned_retention_removed_total[1h]))", "{{kind}}"),
        ),
        lines(
            "Ingesters: segments",
            "Segments that ingesters record, batches that they read again since a partition had gone to another one, "
            "and files that were in no segment and are deleted.",
            ("sum by (instance) (rate(retuned_segments_total[$__rate_interval]))", "{{instance}}"),
            ("sum by (instance) (rate(retuned_segments_reassigned_total[$__rate_interval]))", "{{instance}} again"),
            ("sum(rate(retuned_segment_files_deleted_total[$__rate_interval]))", "deleted files"),
            unit=ROWS,
        ),
        lines(
            "Ingesters: bytes",
            "Bytes of segments that come into object storage.",
            ("sum by (instance) (rate(retuned_segment_bytes_total[$__rate_interval]))", "{{instance}}"),
            unit=BYTES_A_SECOND,
        ),
        lines(
            "Ingesters: what is around them",
            "Whether the database and the object storage answer each ingester (1) or not (0).",
            ("retuned_store_up", "{{instance}}"),
            ("retuned_ingester_build_info", "{{instance}} {{version}}"),
        ),
        lines(
            "Cluster: who leads",
            "1 for the daemon that leads, 0 for one that stands by.",
            ("retuned_leader", "{{instance}}"),
        ),
        *_of_gateways(),
    ]
    return board("operations", "Is the daemon sound, and does it keep up?", panels, version=False)


def _of_gateways() -> list[Any]:
    """What gateways answer, and what they have not published; empty where there are none."""
    return [
        lines(
            "Gateways: requests",
            "Requests that gateways sent to model servers, by status, and those that they answered with an error of "
            "their own, by its code. 499: the app went away before its answer.",
            (
                f"sum by (code) (rate(retuned_gateway_requests_total{{{OF_WORKLOAD}}}[$__rate_interval]))",
                "{{code}}",
            ),
            ("sum by (code) (rate(retuned_gateway_refused_total[$__rate_interval]))", "{{code}}"),
            unit=REQUESTS,
        ),
        lines(
            "Gateways: time of answers",
            "From a request to the end of its answer and, of streams, to the first piece: 95th percentile.",
            *(
                (quantile(0.95, f"retuned_gateway_{metric}_seconds", "workload", OF_WORKLOAD), f"{{{{workload}}}} {of}")
                for metric, of in (("request", "whole"), ("first_token", "first piece"))
            ),
            unit=SECONDS,
        ),
        lines(
            "Gateways: instead of the assigned model",
            "Answers of another model than the one that the conversation belongs to, which was on no server.",
            (
                "sum by (workload, model_name) "
                f"(rate(retuned_gateway_fallbacks_total{{{OF_WORKLOAD}}}[$__rate_interval]))",
                "{{workload}} {{model_name}}",
            ),
            unit=REQUESTS,
        ),
        lines(
            "Gateways: asked in shadow",
            "Answers of a candidate that nobody is shown. Skipped: too many were waited for, or Kafka was away.",
            ("sum by (outcome) (rate(retuned_gateway_shadow_total[$__rate_interval]))", "{{outcome}}"),
            unit=REQUESTS,
        ),
        lines(
            "Gateways: memory of corrections",
            "Look-ups by their result: same and related had the help of an approved answer; held_out had not.",
            (
                f"sum by (result) (rate(retuned_gateway_memory_lookups_total{{{OF_WORKLOAD}}}[$__rate_interval]))",
                "{{result}}",
            ),
            unit=REQUESTS,
        ),
        lines(
            "Gateways: time of look-ups in the memory",
            "From a request to the result of its look-up: 50th and 99th percentile.",
            *((quantile(share, "retuned_gateway_memory_lookup_seconds"), f"{share:.0%}") for share in (0.5, 0.99)),
            unit=SECONDS,
        ),
        lines(
            "Gateways: entries of the memory",
            "Entries in force at each gateway.",
            (f"retuned_gateway_memory_entries{{{OF_WORKLOAD}}}", "{{instance}} {{workload}}"),
        ),
        lines(
            "Gateways: waiting for Kafka",
            "What waits on the disks of gateways, and what may at most. Beyond that it is dropped.",
            ("retuned_gateway_buffered_bytes", "{{instance}}"),
            ("retuned_gateway_buffer_limit_bytes", "{{instance}} at most"),
            unit=BYTES,
        ),
        lines(
            "Gateways: published and dropped",
            "Events that Kafka has taken from gateways, and those that are lost, by reason.",
            ("sum by (kind) (rate(retuned_gateway_published_total[$__rate_interval]))", "{{kind}}"),
            (
                "sum by (kind, reason) (rate(retuned_gateway_dropped_total[$__rate_interval]))",
                "lost {{kind}}: {{reason}}",
            ),
            ("sum(rate(retuned_gateway_feedback_total[$__rate_interval]))", "feedback over HTTP"),
            unit=EVENTS,
        ),
        lines(
            "Gateways: what is around them",
            "Whether each model server and the daemon answer each gateway (1) or not (0), how many requests are under "
            "way, and for how many seconds what waits longest has waited for Kafka.",
            ("retuned_gateway_upstream_up", "{{instance}} {{upstream}}"),
            ("retuned_gateway_daemon_up", "{{instance}} daemon"),
            ("retuned_gateway_memory_up", "{{instance}} memory"),
            ("retuned_gateway_in_flight", "{{instance}} requests"),
            ("retuned_gateway_buffered_seconds", "{{instance}} seconds waited"),
            ("retuned_gateway_build_info", "{{instance}} {{version}}"),
        ),
        lines(
            "Gateways: servers that keep failing",
            "For how many models each server is passed over because it keeps failing, how often that began, and how "
            "many of its answers were cut because they passed a bound in bytes or time.",
            ("retuned_gateway_upstream_ejected", "{{instance}} {{upstream}}"),
            (
                "sum by (upstream) (increase(retuned_gateway_ejections_total[$__rate_interval]))",
                "{{upstream}} ejections",
            ),
            (
                "sum by (upstream, bound) (increase(retuned_gateway_answers_cut_total[$__rate_interval]))",
                "{{upstream}} {{bound}}",
            ),
        ),
        lines(
            "Gateways: connections",
            "Connections of apps, and how many there may be.",
            ("retuned_gateway_open_connections", "{{instance}}"),
            ("retuned_gateway_open_connections_limit", "{{instance}} at most"),
        ),
    ]


def quality() -> dashboard.Dashboard:
    """Are the answers good?"""
    panels = [
        lines(
            "Helpful answers",
            "Share of the rated answers of the current window that were called helpful, by who rated, with its "
            "95% interval. Sources are never mixed: users, experts, judges and apps see different things.",
            (f"retuned_helpful_ratio{{{OF_ALL}}}", "{{workload}} {{source}}"),
            (interval_of("helpful"), "{{workload}} {{source}} {{end}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Helpful answers, estimated",
            "Helpful rate of all answers of the current window, rated or not, by a model of the votes, with its 95% "
            "interval. It assumes that of two answers that look alike the rated one is as often helpful as the other.",
            (f"retuned_helpful_rate_estimate{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_helpful_rate_estimate_interval{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Invented answers",
            "Share of the judged answers of the current window that were hallucinations, by who judged, and of pairs "
            "of answers to one question that contradict each other. The source grounding_calibrated is what experts' "
            "labels of answers drawn at random amount to; it is absent until there are enough.",
            (f"retuned_hallucination_ratio{{{OF_ALL}}}", "{{workload}} {{source}}"),
            (interval_of("hallucination"), "{{workload}} {{source}} {{end}}"),
            (f"retuned_contradiction_ratio{{{OF_ALL}}}", "{{workload}} contradictions"),
            unit=SHARE,
            most=1,
            limit=0.2,
        ),
        lines(
            "Grounding",
            "Of the answers that values could be compared of, or that the detector (nli) or the judge (llm) saw, the "
            "share on which each alarms: no rate of invented answers.",
            (f"retuned_grounding_alarm_ratio{{{OF_ALL}}}", "{{workload}} values"),
            (f"retuned_detector_alarm_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{source}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Answered by the incumbent by rule",
            "Share of the answers of the current window that the incumbent gave by rule (cascade), and the "
            "helpful rate of these answers by source of the votes.",
            (f"retuned_cascade_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{rule}}"),
            (f"retuned_cascade_helpful_ratio{{{OF_WORKLOAD}}}", "{{workload}} helpful {{source}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Answers judged by grounding",
            "How many answers with passages the grounding scorer judged, and on how many it abstained (no values to "
            "compare, code, a language that it does not read).",
            (f"retuned_workload_grounding_answers{{{OF_WORKLOAD}}}", "{{workload}} {{outcome}}"),
        ),
        lines(
            "Tone",
            "Likeness of the answers of the current window to approved ones (corrections, and earlier answers that "
            "people found helpful), in tone and format. 1: as like as those are to each other; well below, they sound "
            "different.",
            (f"retuned_tone_likeness_ratio{{{OF_ALL}}}", "{{workload}}"),
            unit=SHARE,
        ),
        lines(
            "Judged answers",
            "How many answers these shares were counted from. Under 50, a share says little.",
            (f"retuned_workload_judged_answers{{{OF_WORKLOAD}}}", "{{workload}} {{rate}} {{source}}"),
        ),
        lines(
            "Judged answers, by model",
            "How many answers shares by model were counted from, and how many the grounding scorer judged or abstained "
            "on. `other` is all models beyond the ten busiest of the window.",
            (f'retuned_judged_answers{{{OF_VERSION}, model_name!="*"}}', "{{model_name}} {{rate}} {{source}}"),
            (f'retuned_grounding_answers{{{OF_VERSION}, model_name!="*"}}', "{{model_name}} {{outcome}}"),
        ),
        lines(
            "Helpful answers, by model",
            "The same share by model, users alone: did a promotion help?",
            (f'retuned_helpful_ratio{{{OF_VERSION}, model_name!="*", source="user"}}', "{{model_name}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Invented answers, by model",
            "Share of invented answers by model and by who judged them.",
            (f'retuned_hallucination_ratio{{{OF_VERSION}, model_name!="*"}}', "{{model_name}} {{source}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Latency of the window",
            "Latency of the answers of the current window, as the apps report it: median, 95th and 99th percentile.",
            (f"retuned_answer_latency_seconds{{{OF_ALL}}}", "{{workload}} {{quantile}}"),
            unit=SECONDS,
        ),
        lines(
            "Latency, by model",
            "What answers took in the last minutes, as the apps report it: median and 95th percentile. From a "
            "histogram, so coarser than the window's figures, but of now. A point is an answer and leads to its page.",
            *(
                (quantile(share, "retuned_interaction_latency_seconds", "model_name", OF_VERSION), legend)
                for share, legend in ((0.5, "{{model_name}} median"), (0.95, "{{model_name}} 95%"))
            ),
            unit=SECONDS,
            exemplars=True,
        ),
        lines(
            "Time to first token, by model",
            "When the first token of an answer came, in the last minutes: median and 95th percentile. A point is an "
            "answer and leads to its page.",
            *(
                (quantile(share, "retuned_interaction_time_to_first_token_seconds", "model_name", OF_VERSION), legend)
                for share, legend in ((0.5, "{{model_name}} median"), (0.95, "{{model_name}} 95%"))
            ),
            unit=SECONDS,
            exemplars=True,
        ),
        lines(
            "Answers, by model",
            "Answers a second that told their latency: who serves how much of the traffic?",
            (
                "max by (model_name) (sum by (model_name, instance) "
                f"(rate(retuned_interaction_latency_seconds_count{{{OF_VERSION}}}[$__rate_interval])))",
                "{{model_name}}",
            ),
            unit=ANSWERS,
            stacked=True,
        ),
        lines(
            "Tokens of an interaction",
            "Mean tokens of an interaction of the current window, input and output.",
            (f"retuned_answer_tokens{{{OF_ALL}}}", "{{workload}} {{kind}}"),
        ),
        lines(
            "Tokens a second",
            "Tokens of all interactions in the last minutes, input and output.",
            (
                "max by (workload, kind) (sum by (workload, kind, instance) "
                f"(rate(retuned_interaction_tokens_total{{{OF_VERSION}}}[$__rate_interval])))",
                "{{workload}} {{kind}}",
            ),
            unit=TOKENS,
        ),
        lines(
            "Feedback",
            "Feedback a second on stored answers, by name and source; `other` is all names that are not reserved. A "
            "point is an answer that was called unhelpful or invented, or was corrected, and leads to its page.",
            (
                f"sum by (workload, name, source) (rate(retuned_feedback_total{{{OF_WORKLOAD}}}[$__rate_interval]))",
                "{{workload}} {{name}} by {{source}}",
            ),
            unit=EVENTS,
            exemplars=True,
        ),
        states(
            "Blind monitors",
            "Monitors that have too few conversations (quality, drift), ratings (policy) or labels (hallucination), "
            "and find nothing.",
            (f"retuned_monitor_blind{{{OF_WORKLOAD}}}", "{{workload}} {{monitor}}"),
            {"0": ("enough", "green"), "1": ("blind", "orange")},
        ),
        lines(
            "Rows that blind monitors lack",
            "How many conversations, ratings or labels are missing until a monitor can report.",
            (f"retuned_monitor_missing_rows{{{OF_WORKLOAD}}}", "{{workload}} {{monitor}}"),
        ),
    ]
    return board("quality", "Are the answers good, and do people say so?", panels)


def learning() -> dashboard.Dashboard:
    """Does it learn?"""
    day = "[1d]"
    panels = [
        states(
            "Drift",
            "Whether the latest drift check found that prompts or answers differ from the reference. The report on the "
            "console names what moved.",
            (f"retuned_drift_detected{{{OF_WORKLOAD}}}", "{{workload}}"),
            {"0": ("quiet", "green"), "1": ("drift", "orange")},
        ),
        lines(
            "How far it drifted",
            "The smallest share of the current events that must be other than those of the reference, by the feature "
            "(topics, lengths, new words, language, satisfaction …) that moved furthest, with its 95% interval.",
            (f"retuned_drift_severity_ratio{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_drift_severity_interval_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Drift checks",
            "Checks in the last six hours, by outcome. Too few rows: the check was blind.",
            (
                f"sum by (workload, outcome) (increase(retuned_drift_checks_total{{{OF_WORKLOAD}}}[6h]))",
                "{{workload}} {{outcome}}",
            ),
        ),
        lines(
            "Blind drift checks",
            "Conversations that are missing until the windows of a workload can be compared.",
            (f"retuned_drift_missing_conversations{{{OF_WORKLOAD}}} > 0", "{{workload}}"),
        ),
        rows(
            "Models in service",
            "The champion and the model before it, by workload.",
            f"retuned_model_info{{{OF_WORKLOAD}}}",
            ("workload", "alias", "model_name"),
        ),
        lines(
            "Replicas in sync",
            "1 while a replica has what it should of a workload, and its effect probe passes; 0: the status says why. "
            "No series: it does not answer.",
            (f"retuned_replica_in_sync{{{OF_WORKLOAD}}}", "{{workload}} {{replica}}"),
            ("retuned_replica_up", "{{replica}} answers"),
            (f"retuned_effect_probe_passed{{{OF_WORKLOAD}}}", "{{model_name}} on {{replica}}: probe"),
            (f"retuned_version_served{{{OF_WORKLOAD}}}", "{{model_name}}: on enough replicas"),
            most=1,
        ),
        lines(
            "From decision to served",
            "Seconds from the latest change of what serves until enough replicas of the targets answered with it.",
            (f"retuned_served_seconds{{{OF_WORKLOAD}}}", "{{workload}}"),
            unit=SECONDS,
        ),
        lines(
            "Score on the holdout",
            "Mean score on held-out prompts, which were never trained on, in the latest evaluation: base, champion, "
            "candidate, and as @logged what production had answered.",
            (f"retuned_evaluation_score_ratio{{{OF_VERSION}}}", "{{model_name}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Decisions",
            "In the last day: the policy's on retraining, the gate's on candidates, and changes of champion; and how "
            "often a scheduled job failed for a workload.",
            *(
                (f"sum by (workload, {label}) (increase({metric}{{{OF_WORKLOAD}}}{day}))", legend)
                for metric, label, legend in (
                    ("retuned_retrain_decisions_total", "outcome", "{{workload}} retrain {{outcome}}"),
                    ("retuned_gate_decisions_total", "outcome", "{{workload}} gate {{outcome}}"),
                    ("retuned_promotions_total", "event", "{{workload}} {{event}}"),
                    ("retuned_workload_failures_total", "task", "{{workload}} {{task}} failed"),
                )
            ),
        ),
        lines(
            "Time left to approve",
            "For how long what the gate passed can still be approved (rollout.approve). No series: nothing waits.",
            (f"retuned_approval_expiry_timestamp_seconds{{{OF_WORKLOAD}}} - time()", "{{workload}}"),
            unit=SECONDS,
        ),
        lines(
            "Loss",
            "Loss of the completion tokens of each step of training.",
            (f"retuned_training_loss{{{OF_WORKLOAD}}}", "{{workload}}"),
        ),
        lines(
            "Progress of training",
            "Steps done over steps planned in the runs under way.",
            (f"retuned_training_progress_ratio{{{OF_WORKLOAD}}}", "{{workload}}"),
            unit=SHARE,
            most=1,
        ),
        lines(
            "Runs in line",
            "By what they wait for: turn (the limit: one run on a machine, runner.at_a_time on a cluster), paused, "
            "rollout, hours (schedule.training_hours) or memory (no series: none waits); the pauses in force, and "
            "versions that wait for approval.",
            (f"retuned_runs_waiting{{{OF_WORKLOAD}}}", "{{workload}} {{reason}}"),
            (f"retuned_approvals_waiting{{{OF_WORKLOAD}}}", "{{workload}} approval"),
            ("retuned_training_pauses", "pauses"),
        ),
        lines(
            "Since a run last reported progress",
            "Of each run under way. Long: it hangs, or the machine has no time for it. No series: nothing trains.",
            (f"time() - retuned_training_active_timestamp_seconds{{{OF_WORKLOAD}}}", "{{workload}}"),
            unit=SECONDS,
            limit=1_800,
        ),
        lines(
            "Speed",
            "Tokens trained on each second, those of prompts included.",
            (f"retuned_training_tokens_per_second{{{OF_WORKLOAD}}}", "{{workload}}"),
            unit=TOKENS,
        ),
        lines(
            "Runs",
            "Retrainings that ended in the last day, by state. Refused: the candidate did not pass the gate.",
            (
                f"sum by (workload, state) (increase(retuned_training_runs_total{{{OF_WORKLOAD}}}{day}))",
                "{{workload}} {{state}}",
            ),
        ),
        lines(
            "Duration of a run",
            "Mean time of training and evaluating, over the last day.",
            (
                f"sum by (workload) (increase(retuned_training_seconds_sum{{{OF_WORKLOAD}}}{day})) / "
                f"sum by (workload) (increase(retuned_training_seconds_count{{{OF_WORKLOAD}}}{day}) > 0)",
                "{{workload}}",
            ),
            unit=SECONDS,
        ),
        lines(
            "Asked of experts",
            "Answers that experts are asked to judge and have not yet, and what they answered in the last day.",
            (f"retuned_label_requests_open{{{OF_WORKLOAD}}}", "{{workload}} open"),
            (
                f"sum by (workload) (increase(retuned_label_requests_answered_total{{{OF_WORKLOAD}}}{day}))",
                "{{workload}} answered",
            ),
        ),
        lines(
            "In quarantine",
            "Feedback that the latest dataset sets aside, by reason. Nothing of it is learned. "
            "`retuned export quarantine` lists it.",
            (f"retuned_quarantined_feedback{{{OF_WORKLOAD}}}", "{{workload}} {{reason}}"),
        ),
        lines(
            "Versions with erased rows",
            "Versions that learned rows which were erased since, and that still exist. They are deleted once a "
            "retraining without these rows replaces them; overdue is what exists after `forget.within_days`.",
            (f"retuned_erased_versions{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_erased_versions_overdue{{{OF_WORKLOAD}}}", "{{workload}} overdue"),
        ),
        lines(
            "Erasures that wait",
            "Age of the oldest erasure that is not carried out, by state. `applying`: the leader of a cluster has "
            "erased, and this daemon has not. `retuned erasures` has the reason.",
            ("retuned_erasure_waiting_seconds", "{{instance}} {{state}}"),
            unit=SECONDS,
        ),
        lines(
            "Memory of corrections",
            "Entries by state, and answers for which the memory had an entry in the last hour, by outcome.",
            (f"retuned_memory_entries{{{OF_WORKLOAD}}}", "{{workload}} {{state}}"),
            (f"increase(retuned_memory_answers_total{{{OF_WORKLOAD}}}[1h])", "{{workload}} {{outcome}}"),
        ),
        lines(
            "Effect of the memory",
            "The share of unhelpful votes on answers that the memory helped, minus that on answers held out, and its "
            "95% interval. Below 0 the memory helps.",
            (f"retuned_memory_unhelpful_difference_ratio{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_memory_unhelpful_difference_interval_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            unit=SHARE,
        ),
        lines(
            "Rollouts",
            "The share of the conversations that a version answers while it goes into service step by step, and the "
            "evidence that it is worse than the champion beside it, by metric and source. At 100% of that it is taken "
            "back.",
            (f"retuned_rollout_share_ratio{{{OF_WORKLOAD}}}", "{{workload}} share"),
            (f"retuned_rollout_evidence_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{metric}}, {{source}}"),
            unit=SHARE,
            limit=1,
        ),
        lines(
            "Decisions on canaries",
            "Answers of the canary in its present step, and what was decided in the last hour: advance, hold, roll "
            "back.",
            (f"retuned_rollout_answers{{{OF_WORKLOAD}}}", "{{workload}} answers"),
            (
                f"sum by (workload, verdict) (increase(retuned_rollout_decisions_total{{{OF_WORKLOAD}}}[1h]))",
                "{{workload}} {{verdict}}",
            ),
        ),
        lines(
            "Evidence against a new champion",
            "The evidence that a champion which the gate promoted is worse in service than the one before "
            "it, by metric and source. At 100% it is taken back.",
            (f"retuned_watch_evidence_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{metric}}, {{source}}"),
            unit=SHARE,
            limit=1,
        ),
        lines(
            "Time to find a worse champion",
            "How long after a promotion a fall of 20 points shows, at the rate at which users vote. Longer than the "
            "watch: it would not be found.",
            (f"retuned_watch_detection_seconds{{{OF_WORKLOAD}}}", "{{workload}}"),
            unit=SECONDS,
        ),
        lines(
            "Watch over new champions",
            "Whether a champion is watched (1), whether votes are enough to find a fall of 20 points before the watch "
            "ends (1), and what was said of it in the last hour: go on, keep, roll back.",
            (f"retuned_watch_active{{{OF_WORKLOAD}}}", "{{workload}} watched"),
            (f"retuned_watch_power{{{OF_WORKLOAD}}}", "{{workload}} enough votes"),
            (
                f"sum by (workload, verdict) (increase(retuned_watch_checks_total{{{OF_WORKLOAD}}}[1h]))",
                "{{workload}} {{verdict}}",
            ),
        ),
    ]
    return board("learning", "Does it notice, learn, and promote nothing worse?", panels)


def _net_gain(offset: str) -> str:
    """PromQL; a workload that cost nothing yet has gains all the same."""
    amount = f'sum by (workload) (retuned_roi_amount{{{OF_WORKLOAD}, kind="%s"}}{offset})'
    gains, costs = amount % "gain", amount % "cost"
    return f"{gains} - ({costs} or 0 * {gains})"


def business() -> dashboard.Dashboard:
    """Does it pay?"""
    net = _net_gain("")
    panels = [
        number(
            "ROI",
            "(gains − costs) / costs since the ledger began. Absent while nothing was spent. What an hour and an "
            "escalation are worth is configured.",
            (f"retuned_roi_ratio{{{OF_WORKLOAD}}}", "{{workload}}"),
            SHARE,
            width=8,
            steps=GAIN_OR_LOSS,
        ),
        number(
            "Net gain ($currency)",
            "Gains less costs since the ledger began.",
            (net, "{{workload}}"),
            decimals=2,
            width=8,
            steps=GAIN_OR_LOSS,
        ),
        lines(
            "Net gain a day ($currency)",
            "What each day added: gains less costs of the last 24 hours.",
            (f"({net}) - ({_net_gain(' offset 1d')})", "{{workload}}"),
            least=None,
        ),
        lines(
            "ROI and its interval",
            "(gains − costs) / costs and its 95% interval, from how much conversations differ. Absent below 30 "
            "conversations.",
            (f"retuned_roi_ratio{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_roi_interval_ratio{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            unit=SHARE,
            least=None,
        ),
        lines(
            "Gains and their interval ($currency)",
            "Gains since the ledger began and their 95% interval.",
            (f'sum by (workload) (retuned_roi_amount{{{OF_WORKLOAD}, kind="gain"}})', "{{workload}}"),
            (f"retuned_roi_gain_interval_amount{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            least=None,
        ),
        lines(
            "Cost per resolved conversation ($currency)",
            "All booked costs over the conversations that were resolved and not escalated, both since it is known "
            "whether they are. Absent without feedback `resolved`.",
            (f"retuned_roi_cost_per_resolved_amount{{{OF_WORKLOAD}}}", "{{workload}}"),
        ),
        lines(
            "Cost of an answer by rule ($currency)",
            "Mean cost of an answer of the current window that the incumbent gave by rule.",
            (f"retuned_cascade_cost_amount{{{OF_WORKLOAD}}}", "{{workload}} {{rule}}"),
        ),
        lines(
            "Conversations by outcome",
            "What became of conversations of the last 24 hours. Where most are unknown, the cost per resolved "
            "conversation is too high.",
            (
                f"sum by (outcome) (retuned_roi_conversations{{{OF_WORKLOAD}}}) "
                f"- sum by (outcome) (retuned_roi_conversations{{{OF_WORKLOAD}}} offset 1d)",
                "{{outcome}}",
            ),
            least=None,
            stacked=True,
        ),
        lines(
            "Numbers left out",
            "What events reported beyond roi.maximum_time_saved_seconds or roi.maximum_event_amount, by item: taken "
            "for mistakes, and not booked.",
            (f"retuned_ledger_left_out_events{{{OF_WORKLOAD}}}", "{{workload}} {{item}}"),
        ),
        lines(
            "Champion against the model before ($currency)",
            "What the champion earned more than the model before it would have, had that one gained as much with each "
            "conversation as in its last days, with the 95% interval.",
            (f"retuned_roi_uplift_amount{{{OF_WORKLOAD}}}", "{{workload}}"),
            (f"retuned_roi_uplift_interval_amount{{{OF_WORKLOAD}}}", "{{workload}} {{end}}"),
            least=None,
        ),
        lines(
            "Gains and costs, by model ($currency)",
            "Of the champion and of the model before it, since the ledger began.",
            (f"retuned_roi_version_amount{{{OF_VERSION}}}", "{{model_name}} {{kind}}"),
            least=None,
        ),
        lines(
            "Gains ($currency)",
            "What answers gained, by item, summed since the ledger began. More escalations than without the model are "
            "a loss.",
            (f'sum by (item) (retuned_roi_amount{{{OF_WORKLOAD}, kind="gain"}})', "{{item}}"),
            least=None,
            stacked=True,
        ),
        lines(
            "Costs ($currency)",
            "What the model cost, by item, summed since the ledger began.",
            (f'sum by (item) (retuned_roi_amount{{{OF_WORKLOAD}, kind="cost"}})', "{{item}}"),
            stacked=True,
        ),
    ]
    return board("business", "Does it pay?", panels, money=True)


def files() -> dict[str, str]:
    """Name of each file and what is to stand in it."""
    boards = {
        "fleet": fleet(),
        "operations": operations(),
        "quality": quality(),
        "learning": learning(),
        "business": business(),
    }
    return {
        f"{name}.json": JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"
        for name, made in boards.items()
    }


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
