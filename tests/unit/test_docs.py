"""The documentation: links lead somewhere, what it names exists, and the reference is what the code says."""

import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import START
from fixtures.feedback.traffic import BOUNDS
from retuned.consumers.formats.events import Feedback, Interaction, Kind, decode
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.example import sections
from retuned.daemon.cli.main import root
from retuned.daemon.gateway.metrics import Metrics as GatewayMetrics
from retuned.daemon.settings import load
from retuned.daemon.transfer.exports import TABLES
from retuned.daemon.web.routes import ROUTES
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings
from retuned.retrain.settings import Settings as RetrainSettings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
# What people wrote: the reference is checked as a whole.
WRITTEN = [page for page in PAGES if page.parent != REFERENCE]
PACKAGES = ("consumers", "daemon", "monitors", "retrain")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
# Parts of /api/v1/status whose names look like keys.
STATUS = {"roi.versions", "roi.promotions", "roi.conversations", "roi.left_out"}
FILES = re.compile(rf"(?:{'|'.join(PACKAGES)}|tests|deploy|docs)/[\w./-]*\w/?")
DEPLOYED = sorted((ROOT / "deploy").rglob("*"))
FUNCTION = re.compile(r"(?:\w+\.)*(\w+)\(\)")
GUIDES = [page for page in WRITTEN if page.name != "CONTRIBUTING.md"]
# Riddles, and verbs that make persons of programs.
BANNED = re.compile(
    r"\b(whether it is the one|of one that|what is so|those of which|whatever|what came of|the way out|takes? up|"
    r"taken up|goes on|go on|hears?|heard|says?|said|tells?|told|believes?)\b",
    re.IGNORECASE,
)
MOST_WORDS = 45
"""Of a sentence; code, tables and headings are not counted."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """What a link into a page may name: its headings, as the site and GitHub name them, and what has an id."""
    text = prose(page)
    headings = [
        re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    slugs = [re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    return {*slugs, *re.findall(r'id="([^"]+)"', text)}


def links(page: Path) -> Iterator[str]:
    """Targets within the repository."""
    text = CODE.sub("", prose(page))
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    yield from (target for target in found if not re.match(r"\w+:", target))


def code(page: Path) -> Iterator[str]:
    """What stands in code font, and each line of a block."""
    text = page.read_text(encoding="utf-8")
    yield from CODE.findall(prose(page))
    for block in FENCE.findall(text):
        yield from (line.strip() for line in block.splitlines()[1:-1])
    yield from (line.strip() for line in text.splitlines() if line.startswith("    "))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_pages_and_anchors_that_exist(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if DOCS in page.parents:
            assert DOCS in target.parents, f"{link}: the site has only what is in docs/"
        if anchor:
            assert anchor in anchors(target), link


def test_the_readme_is_short_and_its_pictures_are_small() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    assert all(picture.stat().st_size < 300_000 for picture in (DOCS / "images").iterdir())


def test_what_the_readme_emits_are_events(monkeypatch: pytest.MonkeyPatch) -> None:
    class Producer:
        """Takes the place of kafka-python's."""

        sent: ClassVar[list[tuple[Kind, bytes]]] = []
        waiting = 0

        def __init__(self, value_serializer: Callable[[Any], bytes], **_: Any) -> None:
            self.serialize = value_serializer

        def send(self, topic: Kind, value: Any, key: bytes) -> None:
            assert key
            self.sent.append((topic, self.serialize(value)))
            Producer.waiting += 1

        def flush(self) -> None:
            Producer.waiting = 0

    monkeypatch.setattr("kafka.KafkaProducer", Producer)
    message = SimpleNamespace(content="Within 30 days.")
    completion = SimpleNamespace(model="support.refunds@base", choices=[SimpleNamespace(message=message)])
    completions = SimpleNamespace(create=lambda **_: completion)
    app = {
        "client": SimpleNamespace(chat=SimpleNamespace(completions=completions)),
        "messages": [{"role": "user", "content": "Until when can I return a tent?"}],
        "conversation": "c-81",
        "user": "u-17",
    }
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(snippet, app)
    events = [decode(topic, value, BOUNDS) for topic, value in Producer.sent]
    assert [type(event) for event in events] == [Interaction, Feedback, Feedback]
    assert {event.interaction_id for event in events if isinstance(event, Feedback)} == {events[0].id}
    assert Producer.waiting == 0, "what is not flushed is lost when the process ends"


def test_every_page_is_in_the_navigation() -> None:
    def pages(part: object) -> Iterator[str]:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            yield from (page for inner in part.values() for page in pages(inner))
        elif isinstance(part, list):
            yield from (page for inner in part for page in pages(inner))

    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    found = list(pages(configuration["nav"]))
    assert sorted(found) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@cache
def script(name: str) -> ModuleType:
    """One of those that write pages."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_says() -> None:
    stored = {page.name: page.read_text(encoding="utf-8") for page in REFERENCE.iterdir()}
    assert script("generate").files() == stored, "run python docs/generate.py"


def test_the_capacity_is_what_is_counted() -> None:
    text = (DOCS / "capacity.md").read_text(encoding="utf-8")
    assert script("capacity").page(text) == text, "run python docs/capacity.py"


def test_the_reference_has_every_route_outside_of_the_api() -> None:
    others = {f"{route.method} {route.path}" for route in ROUTES if not route.path.startswith("/api/")}
    assert others == set(script("generate").OTHER_ROUTES)


def test_the_reference_has_every_metric_of_the_gateway() -> None:
    registry = CollectorRegistry()
    GatewayMetrics(registry)
    names = {f"{one.name}_total" if one.type == "counter" else one.name for one in registry.collect()}
    assert "retuned_gateway_requests_total" in names
    assert names <= anchors(REFERENCE / "metrics.md")


def test_the_reference_has_every_field_of_a_model_event(warehouse: Warehouse, tmp_path: Path) -> None:
    row = {"path": "/x", "base_model": "b", "base_hash": "h", "dataset_version": "d", "run_id": "r", "manifest": "{}"}
    warehouse.insert("models", version="aaaaaaaa", workload="support", created_at=START, **row)
    publisher = MemoryPublisher()
    settings = RetrainSettings(models=ModelsSettings(directory=tmp_path / "models"))
    Rollout(warehouse, settings, publisher, "model-events").promote("support", "aaaaaaaa", "operator", "?", START)
    ((_, _, message),) = publisher.messages
    assert [*message, "approval"] == list(script("generate").MODEL_EVENT)


def test_every_alert_has_an_entry_that_it_names() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "retuned.rules.yml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    operate = (DOCS / "operate.md").read_text(encoding="utf-8")
    entries = re.split(r"^### (Retuned\w+)$", operate, flags=re.MULTILINE)
    assert [alert["alert"] for alert in alerts] == entries[1::2]
    for alert, entry in zip(alerts, entries[2::2], strict=True):
        path, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert ROOT / path == DOCS / "operate.md"
        assert anchor == alert["alert"].lower()
        assert all(f"**{part}**" in entry for part in ("Meaning", "Look", "Do")), alert["alert"]


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_targets_of_make_exist(page: Path) -> None:
    for line in code(page):
        if made := re.match(r"make (\w[\w-]*)", line):
            assert re.search(rf"^{made[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


def command_lines(file: Path) -> Iterator[str]:
    """What a file has a reader run: in code font, in blocks, behind `kubectl exec … --` or as a unit's ExecStart."""
    text = re.sub(r"\\\n\s*", "", file.read_text(encoding="utf-8"))
    yield from re.findall(r"`retuned (\w[^`]*)`", FENCE.sub("", text))
    blocks = [*FENCE.findall(text), *re.findall(r"^(?: {4}|ExecStart=).*", text, re.MULTILINE)]
    yield from re.findall(r"^(?: {4}|\$ |ExecStart=)?(?:\S*/)?retuned ([a-z].*)", "\n".join(blocks), re.MULTILINE)
    yield from re.findall(r" (?:--|compose run.*) retuned ([a-z][^`\n]*)", text)


@pytest.mark.parametrize("file", [*WRITTEN, *(file for file in DEPLOYED if file.is_file())], ids=name)
def test_commands_are_those_of_the_command_line(file: Path) -> None:
    for line in command_lines(file):
        # Square brackets are around what may be left out, `N` is a number, and an ellipsis is whatever fits.
        words = shlex.split(re.sub(r"[][`]", "", line).replace("N", "1").replace("…", "x"), comments=True)
        words = list(takewhile(lambda word: word not in (">", "|", "&&", ";"), words))
        try:
            parse(root, words)
        except click.UsageError as error:
            is_named = all(word.startswith("-") for word in words[1:])  # a command or its option, without arguments
            if not (is_named and isinstance(error, click.MissingParameter | click.BadOptionUsage)):
                pytest.fail(f"retuned {line}: {error.format_message()}")


def parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line without carrying it out; raises a UsageError."""
    while isinstance(command, click.Group) and words:
        _, found, words = command.resolve_command(click.Context(command), words)
        assert found is not None
        command = found
    if not isinstance(command, click.Group):
        with suppress(click.exceptions.Exit):
            command.make_context("retuned", words)


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_keys_columns_and_metrics_exist(page: Path) -> None:
    keys = {section: {key.name for key in keys} for section, _, keys in sections()}
    columns = anchors(REFERENCE / "tables.md")
    metrics = anchors(REFERENCE / "metrics.md")
    for span in code(page):
        for section, key in re.findall(r"^(\w+)\.(\w+)$", span):
            if section in keys and key not in ("parquet", "jsonl", "json", "yaml", "sql", "py"):
                assert key in keys[section] or f"{section}.{key}" in columns | STATUS, span
        for section, key in re.findall(r"\bRETUNED__(?:WORKLOADS__[A-Z]+__)?([A-Z]+)__([A-Z_]+)\b", span):
            assert key.lower() in keys[section.lower()], span
        for metric in re.findall(r"^retuned_\w+(?=$|\{)", span):
            assert {metric, re.sub(r"_(bucket|sum|count)$", "", metric)} & metrics, span


def sentences(page: Path) -> Iterator[str]:
    """The sentences of a page, each code span and each link target as nothing."""
    paragraphs: list[list[str]] = [[]]
    for line in prose(page).splitlines():
        text = line.strip()
        if not text or text.startswith(("|", "#", "!!!")) or (line.startswith("    ") and not paragraphs[-1]):
            paragraphs.append([])
            continue
        if item := re.match(r"(?:[-*]|\d+\.) ", text):
            paragraphs.append([])
            text = text[item.end() :]
        paragraphs[-1].append(text)
    for lines in paragraphs:
        text = re.sub(r"\]\([^)]*\)", "]", CODE.sub("", " ".join(lines)))
        yield from re.split(r"(?<=[.!?])[*)\]\"”]*\s+", text)


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_words_are_plain_and_sentences_are_short(page: Path) -> None:
    found = [line for line in CODE.sub("", prose(page)).splitlines() if BANNED.search(line)]
    assert not found, f"use the terms of the field: {found}"
    long = [sentence for sentence in sentences(page) if len(sentence.split()) > MOST_WORDS]
    assert not long, f"cut sentences of more than {MOST_WORDS} words: {long}"


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_a_guide_begins_with_what_a_reader_wants_to_do(page: Path) -> None:
    if page.parent == DOCS and page.name != "index.md":
        first = next(line for line in prose(page).splitlines()[1:] if line)
        assert re.match(r"(Use|Read) (this page|the gateway|a cluster)\b", first), first


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_configurations_are_valid(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if "exporters:" in block:  # of a collector
            continue
        file = tmp_path / "retuned.yaml"
        file.write_text(block)
        settings = load(file)
        for workload in settings.workloads:
            settings.for_workload(workload)


@pytest.mark.parametrize("page", WRITTEN, ids=name)
def test_files_and_functions_exist(page: Path) -> None:
    for span in CODE.findall(prose(page)):
        if FILES.fullmatch(span):
            assert (ROOT / span).exists(), span
        elif called := FUNCTION.fullmatch(span):
            assert called[1] in functions(), span


@cache
def functions() -> set[str]:
    """The functions and classes of the packages and the tests."""
    sources = [file for folder in (*PACKAGES, "tests") for file in (ROOT / folder).rglob("*.py")]
    return {found for file in sources for found in re.findall(r"(?:def|class) (\w+)", file.read_text(encoding="utf-8"))}


def test_the_help_of_export_names_every_table() -> None:
    (described,) = re.findall(r"^Write a table.*$", (REFERENCE / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(TABLES) <= set(re.findall(r"\w+", described))
