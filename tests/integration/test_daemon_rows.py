"""Rows, accounts and previews: by the API on a socket, and on the command line with a daemon and without."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from fixtures.daemon.doors import FakeDaemon
from fixtures.daemon.operations import ask
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import free_port, until
from fixtures.models.datasets import teach
from retuned.daemon.cli.main import main
from retuned.daemon.client import Client
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.principals import add
from retuned.daemon.web.routes import application
from retuned.daemon.web.server import Server


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "retuned.yaml"
    settings = {
        "warehouse": {"path": str(tmp_path / "w.duckdb")},
        "models": {"directory": str(tmp_path / "models")},
        "dataset": {"minimum_rows": 1},
        "gate": {"minimum_examples": 1},
        "http": {"port": free_port()},
        "kafka": {"bootstrap_servers": "127.0.0.1:1"},
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture
def ids(config: Path) -> list[str]:
    """Of feedback, the last of it by a user who said something that an expert does not say."""
    with opened(load(config)) as service:
        teacher = Teacher(service.warehouse)
        taught = teach(teacher, range(12))
        teacher.correct("When do you open?", "Never.", "At 8 am.")
        return [*taught, teacher.correct("When do you open?", "Never.", "At 9 am.", "user", "bert")]


@contextmanager
def served(settings: Settings) -> Iterator[Local]:
    """A service behind a socket."""
    with opened(settings) as service:
        server = Server(application(service, cast(Any, FakeDaemon()), settings), settings.http)
        server.start()
        until(Client(settings).is_up)
        try:
            yield service
        finally:
            server.stop()


def run(config: Path, *arguments: str) -> int:
    return main(["--config", str(config), *arguments])


def conforms(document: dict[str, Any], schema: str, value: Any) -> None:
    registry = Registry().with_resource("urn:api", DRAFT202012.create_resource(document))
    Draft202012Validator({"$ref": f"urn:api#/components/schemas/{schema}"}, registry=registry).validate(value)


def test_a_principal_looks_overrules_and_sees_it_in_the_preview(config: Path, ids: list[str], tmp_path: Path) -> None:
    file = tmp_path / "principals.yaml"
    tokens = {
        role: add(file, f"the-{role}", cast(Any, role), None, datetime.now(UTC)) for role in ("labeller", "operator")
    }
    settings = load(config)
    settings = settings.model_copy(update={"http": settings.http.model_copy(update={"principals_file": file})})
    with served(settings):
        url = f"http://127.0.0.1:{settings.http.port}/api/v1"
        headers = {role: {"Authorization": f"Bearer {token}"} for role, token in tokens.items()}
        with httpx.Client(headers=headers["operator"], timeout=100) as operator:
            document = operator.get(f"{url}/openapi.json").json()
            waiting = operator.get(f"{url}/workloads/support/rows?state=waiting").json()
            assert {row["feedback_id"] for row in waiting} >= set(ids)
            for row in waiting:
                conforms(document, "Row", row)
            found = operator.get(f"{url}/workloads/support/dataset/preview").json()
            conforms(document, "Preview", found)
            states = {row["feedback_id"]: (row["state"], row["reason"]) for row in found["rows"]}
            assert states[ids[-1]] == ("set_aside", "contradicts_expert")
            body = {
                "action": "edit",
                "ids": ids[-1:],
                "reason": "ask carl@example.com",
                "user": "eve",
                "answer": "At 9.",
            }
            refused = httpx.post(f"{url}/rows", json=body, headers=headers["labeller"])
            assert refused.status_code == 403
            personal = operator.post(f"{url}/rows", json=body | {"answer": "At 9, or ask dora@example.com."})
            assert personal.status_code == 409
            assert "personal data (EMAIL), which would be replaced; remove it, or name in privacy.keep" in personal.text
            done = operator.post(f"{url}/rows", json=body).json()
            assert done["rows"] == [{"workload": "support", "feedback_id": ids[-1], "action": "edit", "before": None}]
            (row,) = (one for one in operator.get(f"{url}/workloads/support/rows").json() if one["decision"])
            decision = row["decision"]
            assert (decision["author"], decision["answer"]) == ("the-operator", "At 9.")
            assert "carl" not in decision["reason"]
            few = operator.get(f"{url}/workloads/support/dataset/preview?limit=1").json()
            (edited,) = (one for one in few["rows"] if one["feedback_id"] == ids[-1])
            assert edited["state"] in ("taught", "held_out")
            assert (edited["reason"], edited["answer"]) == ("edited", "At 9.")


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("rows", {"action": "burn", "ids": ["a"], "reason": "r"}, "action: expected keep or drop or pin or edit"),
        ("rows", {"action": "keep", "ids": [], "reason": "r"}, "ids: expected a list of texts"),
        ("rows", {"action": "keep", "ids": ["a"], "reason": " "}, "reason: expected a text"),
        ("rows", {"action": "keep", "ids": ["a"], "reason": "r"}, "has the id a; nothing is changed"),
        ("rows", {"action": "edit", "ids": ["a"], "reason": "r"}, "give the answer that is taught instead"),
        ("accounts", {"action": "ban", "account": "zoe", "reason": "r"}, "nothing is stored of this account"),
        ("accounts", {"action": "ban", "account": "bert", "workload": "x", "reason": "r"}, "workload x: unknown"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_to_do(
    config: Path, ids: list[str], path: str, body: dict[str, Any], named: str
) -> None:
    assert ids
    settings = load(config)
    with served(settings) as service:
        answer = httpx.post(f"http://127.0.0.1:{settings.http.port}/api/v1/{path}", json=body)
        assert answer.status_code in (400, 404, 409)
        assert named in answer.json()["error"]
        assert ask(service, "accounts") == []
        assert service.warehouse.rows("FROM row_decisions") == []


@pytest.mark.full
@pytest.mark.parametrize("daemon", [False, True])
def test_the_commands_do_it_with_a_daemon_and_without(
    config: Path, ids: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, daemon: bool
) -> None:
    def done(*arguments: str) -> str:
        assert run(config, *arguments) == 0
        return capsys.readouterr().out

    def commands() -> None:
        text = done("dataset", "preview", "support")
        assert re.search(r"^total +14$", text, re.MULTILINE)
        assert re.search(r"^set_aside +contradicts_expert +1 ", text, re.MULTILINE)
        assert re.search(r"detail      an expert gives another answer, support-f\d+", text)
        found = json.loads(done("dataset", "preview", "support", "--json"))
        assert len(found["rows"]) == 14
        listed = done("rows", "support", "--state", "waiting")
        assert f"waiting  {ids[-1]}  user  bert  " in listed
        assert json.loads(done("rows", "support", "--state", "taught", "--json")) == []
        kept = done("rows", "keep", ids[-1], ids[0], "--reason", "he is right", "--author", "anna")
        assert kept.startswith(
            "Kept 2 rows of support. The next dataset will follow; see `retuned dataset preview support`"
        )
        author = "anna (without a token)" if daemon else "anna"
        assert f"    decision    action keep, reason he is right, author {author}, " in done("rows", "support")
        answer = tmp_path / "answer.txt"
        answer.write_text("At 10 am.\n")
        done("rows", "edit", ids[-1], "--answer-file", str(answer), "--reason", "since May")
        assert "    answer      At 10 am.\n" in done("dataset", "preview", "support", "--limit", "99")
        assert "Released 1 row of support." in done("rows", "release", ids[-1], "--reason", "no")
        assert done("accounts", "ban", "bert", "--reason", "a bot").startswith("Banned account bert: nothing")
        assert re.search(r"^bert +ban .+ a bot$", done("accounts"), re.MULTILINE)
        assert re.search(r"^overruled +banned +1 ", done("dataset", "preview", "support"), re.MULTILINE)
        assert [one["account"] for one in json.loads(done("accounts", "support", "--json"))] == ["bert"]
        done("accounts", "release", "bert", "--reason", "no bot")
        assert done("accounts") == ""
        for arguments, named in (
            (("rows", "keep", "nobody", "--reason", "r"), "no correction or vote has the id nobody"),
            (("rows", "keep", ids[0]), "give the reason with --reason"),
            (("rows", "keep", "--reason", "r"), "name at least one row"),
            (("rows", "keep", ids[0], "--reason", "r", "--answer", "x"), "takes no answer; use edit"),
            (
                ("rows", "edit", ids[0], "--reason", "r", "--answer", "At <PHONE_1>."),
                "<PHONE_1> stands for redacted text",
            ),
            (("rows", "edit", ids[0], "--reason", "r"), "give the answer with --answer or --answer-file"),
            (("rows", "support", ids[0]), "rows support: unknown action; expected keep, drop, pin, edit, release"),
            (("rows", "support", "--state", "burnt"), "state: expected taught or held_out"),
            (("rows", "sales"), "workload sales: unknown; known are support"),
            (("dataset", "preview", "sales"), "workload sales: unknown; known are support"),
            (("dataset", "preview", "support", "--limit", "100000"), "limit: expected a number from 0 to 99999"),
            (("accounts", "ban", "--reason", "r"), "name the account"),
            (("accounts", "ban", "bert"), "give the reason with --reason"),
        ):
            capsys.readouterr()
            assert run(config, *arguments) == 1, arguments
            assert named in capsys.readouterr().err

    if daemon:
        with served(load(config)):
            commands()
    else:
        commands()


def test_an_operator_looks_and_decides_on_the_page(config: Path, ids: list[str]) -> None:
    settings = load(config)
    with served(settings) as service, httpx.Client() as browser:
        url = f"http://127.0.0.1:{settings.http.port}/workloads/support/rows"
        page = browser.get(url).text
        assert "waiting: not decided 14</a>" in page
        assert ">At 9 am.</td>" in page
        assert "At 9 am." not in browser.get(f"{url}?state=taught").text
        form = {"action": "drop", "id": ids[-1], "reason": "<i>spam</i>", "answer": ""}
        done = browser.post(f"{url}?state=waiting", data=form)
        assert (done.status_code, done.headers["location"]) == (
            303,
            f"/workloads/support/rows?state=waiting&saved={ids[-1]}",
        )
        assert "<b>Dropped</b> in the next dataset<br><small>an operator: " in browser.get(url).text
        assert "&lt;i&gt;spam&lt;/i&gt;" in browser.get(url).text
        (row,) = service.warehouse.rows("SELECT feedback_id, action, answer FROM row_decisions")
        assert row == {"feedback_id": ids[-1], "action": "drop", "answer": None}
        refused = browser.post(url, data=form | {"reason": " "})
        assert (refused.status_code, "reason: expected a text" in refused.text) == (400, True)
        assert ">At 9 am.</td>" in refused.text
        assert browser.get(url.replace("support", "sales")).status_code == 404
        assert browser.post(url, data=form, headers={"Origin": "http://elsewhere"}).status_code == 403


def test_rows_are_read_by_pages_of_the_same_order(config: Path, ids: list[str]) -> None:
    settings = load(config)
    with served(settings), httpx.Client() as client:
        url = f"http://127.0.0.1:{settings.http.port}/api/v1/workloads/support/rows"
        whole = client.get(url).json()
        pages = [client.get(url, params={"limit": 5, "page": page}).json() for page in range(4)]
        assert [len(page) for page in pages] == [5, 5, 4, 0]
        assert [row for page in pages for row in page] == whole
        assert set(ids) <= {row["feedback_id"] for row in whole}
        assert client.get(url, params={"limit": 0}).status_code == 400
        assert client.get(url, params={"page": -1}).status_code == 400


def test_the_page_lists_fifty_rows_at_a_time_and_decides_about_those_selected(config: Path) -> None:
    settings = load(config)
    with served(settings) as service, httpx.Client() as browser:
        teacher = Teacher(service.warehouse)
        for n in range(53):
            teacher.correct(f"Where is parcel {n}?", "Lost.", f"In depot {n}.")
        path = "/workloads/support/rows?state=waiting"
        url = f"http://127.0.0.1:{settings.http.port}{path}"

        def listed(page: str) -> list[str]:
            return re.findall(
                r'<input type="checkbox" form="selected" name="id" value="([^"]+)" aria-label="Select: ', page
            )

        first, second = browser.get(url).text, browser.get(f"{url}&page=1").text
        assert (len(listed(first)), len(listed(second))) == (50, 3)
        assert set(listed(first)).isdisjoint(listed(second))
        assert '<a href="?state=waiting&amp;page=1">Next</a>' in first
        assert '<a href="?state=waiting&amp;page=0">Previous</a>' in second
        assert "50 of 53 are shown." in first
        assert ">Previous<" not in first
        assert ">Next<" not in second
        assert browser.get(f"{url}&page=-1").status_code == browser.get(f"{url}&page=x").status_code == 200
        chosen = listed(second)
        form = {"action": "drop", "reason": "a test", "id": chosen}
        unknown = browser.post(url, data=form | {"id": [*chosen, "nothing"]})
        assert (unknown.status_code, "nothing is changed" in unknown.text) == (409, True)
        none = browser.post(url, data={"action": "drop", "reason": "a test"})
        assert (none.status_code, "choose at least one row" in none.text.lower()) == (400, True)
        assert service.warehouse.rows("FROM row_decisions") == []
        done = browser.post(f"{url}&page=1", data=form)
        assert done.headers["location"] == f"{path}&page=1&saved={chosen[0]}&of=3"
        assert "Saved. Dropped: 3 rows" in browser.get(url.replace(path, done.headers["location"])).text
        stored = service.warehouse.rows("SELECT feedback_id, action, reason FROM row_decisions ORDER BY ALL")
        assert stored == [{"feedback_id": id, "action": "drop", "reason": "a test"} for id in sorted(chosen)]
        (entry,) = service.warehouse.rows(
            "SELECT reason, details FROM audit WHERE action = 'decide_rows' AND outcome = 'done'"
        )
        assert (entry["reason"], json.loads(entry["details"])["ids"]) == ("a test", chosen)
