"""What `make evidence` keeps of a benchmark, and what it draws."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import evidence
import pyarrow.parquet as pq
import pytest
from evidence_plots import PLOTS


@pytest.mark.processes
def test_figures_are_kept_with_the_machine_and_what_failed_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sound.py").write_text("def main():\n    return {'sound_share': 0.25, 'sound_count': 3}\n")
    (tmp_path / "broken.py").write_text("def main():\n    raise ValueError('no data')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "evidence")
    monkeypatch.setattr(evidence, "known", lambda: ["sound", "broken"])
    monkeypatch.setattr(evidence, "years", lambda: None)
    monkeypatch.setattr(sys, "argv", ["evidence.py"])
    assert evidence.main() == 1
    rows = pq.read_table(evidence.result("sound")).to_pylist()
    assert {row["figure"]: row["value"] for row in rows} == {"sound_share": 0.25, "sound_count": 3.0}
    assert rows[0]["seconds"] > 0
    assert rows[0]["processor"]
    assert "duckdb" in json.loads(rows[0]["versions"])
    assert not evidence.result("broken").exists()
    assert "no data" in (tmp_path / "evidence" / "broken.log").read_text()

    (tmp_path / "broken.py").write_text("def main():\n    return {'broken_share': 0.5}\n")
    (tmp_path / "sound.py").write_text("def main():\n    raise ValueError('is done already')\n")
    assert evidence.main() == 0
    assert pq.read_table(evidence.result("broken")).to_pylist()[0]["value"] == 0.5


def test_plots_show_each_system_that_played() -> None:
    years: list[dict[str, Any]] = [
        {
            "scenario": "change", "seed": seed, "system": name, "money": 1_000.0 - lost * (1 + seed),
            "by_day_after": [share] * 40,
        }
        for seed in range(3)
        for name, lost, share in (("oracle", 0, 0.0), ("never", 400, 0.48), ("monthly", 300, 0.4), ("ours", 100, 0.2))
    ]  # fmt: skip
    for plot in PLOTS.values():
        texts = [element.text or "" for element in ElementTree.fromstring(plot(years)).iter()]
        for name in ("never", "monthly", "ours"):
            assert any(text.startswith(name) for text in texts), name
