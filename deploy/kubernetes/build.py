"""Makes the manifests of this folder of the chart and values.yaml: python deploy/kubernetes/build.py"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
CHART = FOLDER.parent / "helm" / "retuned"
RELEASE = "retuned"


def helm() -> str | None:
    """The Helm of this Python's environment (`make .venv/dev`), else that on the path; None: there is none."""
    return shutil.which("helm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def render(*options: str) -> str:
    """What Helm renders of the chart, in the namespace `retuned`.

    Raises:
        RuntimeError: Helm is missing, or refuses; the text has its reason.
    """
    program = helm()
    if program is None:
        raise RuntimeError("helm is missing: make .venv/dev installs it")
    command = [program, "template", RELEASE, str(CHART), "--namespace", RELEASE, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def files() -> dict[str, str]:
    """Each manifest by its path in this folder, and what is to stand in it: a file for each process.

    Those in `cluster` are of the processes that are otherwise than without a cluster.
    """
    alone = ("--values", str(FOLDER / "values.yaml"))
    made = {f"{name}.yaml": _manifest(name, *alone) for name in ("daemon", "gateway")}
    together = (*alone, "--values", str(FOLDER / "cluster" / "values.yaml"))
    return made | {f"cluster/{name}.yaml": _manifest(name, *together) for name in ("daemon", "ingest")}


def _manifest(process: str, *values: str) -> str:
    head = "# Made by build.py from deploy/helm/retuned and values.yaml: change these.\n"
    text = render(*values, "--show-only", f"templates/{process}/*")
    return head + re.sub(r"\n+---\n", "\n---\n", text).rstrip() + "\n"


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
