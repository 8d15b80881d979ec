"""A release: the same bytes each time, checked, signed, and complete enough to run from an empty environment."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retuned.consumers.common.signing import make_key
from retuned.daemon.cli.main import main

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[3]
PARTS = (
    "daemon/demo/company.yaml",
    "daemon/console/static",
    "daemon/console/templates",
    "consumers/warehouse/migrations",
)


def run(*command: object, folder: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release of the last commit."""
    folder = tmp_path_factory.mktemp("release")
    make_key(folder / "release.key")
    run(sys.executable, ROOT / "deploy" / "release.py", folder / "made", "--key", folder / "release.key")
    return folder / "made"


def test_another_build_of_the_same_commit_gives_the_same_bytes(release: Path, tmp_path: Path) -> None:
    """By another user's mask, at another time, in another folder."""
    time.sleep(1.1)  # archives hold whole seconds
    run("sh", "-c", 'umask 077 && exec "$@"', "sh", sys.executable, ROOT / "deploy" / "release.py", tmp_path / "made")
    archives = {file.name: file.read_bytes() for file in release.iterdir() if file.suffix in (".whl", ".gz")}
    assert len(archives) == 2
    assert {name: (tmp_path / "made" / name).read_bytes() for name in archives} == archives


def test_its_signature_covers_each_file(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = release.parent / "release.key.pub"
    assert main(["audit", "verify-version", str(release), "--key", str(key)]) == 0
    assert '"bomFormat": "CycloneDX"' in capsys.readouterr().out
    (wheel,) = release.glob("*.whl")
    content = wheel.read_bytes()
    wheel.write_bytes(content + b"!")
    try:
        assert main(["audit", "verify-version", str(release), "--key", str(key)]) == 1
        assert wheel.name in capsys.readouterr().err
    finally:
        wheel.write_bytes(content)


def test_the_wheel_runs_without_the_tree(release: Path, tmp_path: Path) -> None:
    """From an environment that has the packages it needs, and of retuned nothing but the wheel."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", "--without-pip")
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = release.glob("*.whl")
    place = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", place, wheel)
    # Its packages, but not what an editable installation adds to them.
    (place / "needed.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")) + "\n")
    where = run(python, "-c", "import retuned.daemon as d; print(list(d.__path__)[0])", folder=tmp_path).strip()
    assert where.startswith(str(place))
    retuned = [python, "-m", "retuned.daemon.cli.main"]
    assert "Keeps a language model in step" in run(*retuned, "--help", folder=tmp_path)
    configuration = tmp_path / "retuned.yaml"
    configuration.write_text(run(*retuned, "config", folder=tmp_path))
    (tmp_path / "faq.csv").write_text("question,answer\nHow long may I return it?,14 days\n")
    run(*retuned, "import", "faq.csv", "--workload", "support", "--config", configuration, folder=tmp_path)
    status = json.loads(run(*retuned, "status", "--json", "--config", configuration, folder=tmp_path))
    assert status["ingestion"]["interactions"] == 1
    for part in PARTS:
        assert (place / "retuned" / part).exists(), part
