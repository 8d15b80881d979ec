"""The link from a workload's page to its dashboard."""

import json
import re
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fixtures.daemon.pages import page
from fixtures.feedback.teaching import Teacher
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings

BOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "quality.json"


def test_the_page_of_a_workload_opens_its_dashboard_for_the_same_days(tmp_path: Path) -> None:
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"}, http={"grafana_url": "https://grafana.example.com/sub/"}
    )
    with opened(settings) as local:
        Teacher(local.warehouse, "shop & more").ask("When?", "At 8 am.")
        html = page(local, "/workloads/shop & more?since=2026-03-02&until=2026-03-08")
    (link,) = re.findall(r'href="(https://grafana[^"]*)"', html)
    parts = urlsplit(unescape(link))
    board = json.loads(BOARD.read_text())
    assert parts.path == f"/sub/d/{board['uid']}"
    assert "workload" in {one["name"] for one in board["templating"]["list"]}
    until = datetime(2026, 3, 9, tzinfo=UTC).timestamp() * 1000
    since = datetime(2026, 3, 2, tzinfo=UTC).timestamp() * 1000
    assert parse_qs(parts.query) == {"var-workload": ["shop & more"], "from": [f"{since:.0f}"], "to": [f"{until:.0f}"]}


def test_without_a_grafana_there_is_no_link(tmp_path: Path) -> None:
    with opened(Settings(warehouse={"path": tmp_path / "w.duckdb"})) as local:
        Teacher(local.warehouse).ask("When?", "At 8 am.")
        assert "Grafana" not in page(local, "/workloads/support")
