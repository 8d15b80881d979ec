"""How a child process may end, and what a person is told of it."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from retuned.consumers.common import process
from retuned.consumers.errors import ChildFailed, OutOfMemory

HINT = "take a smaller model"


def run(folder: Path, work: str, on_progress: process.Emit | None = None) -> dict[str, Any]:
    """Run a child that does this."""
    (folder / "child.py").write_text(
        "import os, signal\nfrom pathlib import Path\nfrom retuned.consumers.child import child_main\n"
        f"def work(job, emit):\n    {work}\nif __name__ == '__main__':\n    child_main(work)\n"
    )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return process.run_child(
        "child", {}, folder, timeout_seconds=60, on_progress=on_progress, environment={"PYTHONPATH": path},
        to_need_less=HINT,
    )  # fmt: skip


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def counting(monkeypatch: pytest.MonkeyPatch, before: int | None, after: int | None) -> None:
    found = iter([before, after])
    monkeypatch.setattr(process, "oom_kills", lambda: next(found))


@pytest.mark.processes
def test_a_child_that_the_kernel_ended_for_want_of_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, 3, 4)
    with pytest.raises(OutOfMemory, match=rf"child: out of memory: the kernel ended .*{HINT}; see .*child\.log"):
        run(tmp_path, KILLED)


@pytest.mark.processes
def test_a_child_that_somebody_killed_is_not_said_to_have_lacked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting(monkeypatch, 3, 3)
    with pytest.raises(ChildFailed, match="killed by SIGKILL; see") as raised:
        run(tmp_path, KILLED)
    assert not isinstance(raised.value, OutOfMemory)


@pytest.mark.processes
def test_a_report_that_times_out_is_no_child_that_took_too_long(tmp_path: Path) -> None:
    def report(_: dict[str, Any]) -> None:
        raise TimeoutError("the database does not answer")

    with pytest.raises(TimeoutError, match="the database does not answer"):
        run(tmp_path, "emit({'step': 1})", report)


@pytest.mark.processes
def test_where_the_kernel_does_not_count_it_is_likely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting(monkeypatch, None, None)
    with pytest.raises(ChildFailed, match=rf"killed by SIGKILL, most likely .*out of memory.*{HINT}"):
        run(tmp_path, KILLED)


@pytest.mark.processes
@pytest.mark.parametrize("error", ["bytearray(1 << 62)", 'raise RuntimeError("can\'t allocate memory")'])
def test_an_allocation_that_failed_names_the_way_out(tmp_path: Path, error: str) -> None:
    with pytest.raises(OutOfMemory, match=rf"child: out of memory: .*free now.*{HINT}"):
        run(tmp_path, error)


TORCH = """
class OutOfMemoryError(RuntimeError):
    pass

class cuda:
    is_available = staticmethod(lambda: True)
    current_device = staticmethod(lambda: 1)
    mem_get_info = staticmethod(lambda: (2**29, 80 * 2**30))
    memory_allocated = staticmethod(lambda: 30 * 2**30)
    memory_reserved = staticmethod(lambda: 40 * 2**30)
"""
"""A double of torch on a GPU."""


@pytest.mark.processes
def test_a_gpu_without_memory_is_named_and_not_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(TORCH)
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 1 has a total capacity of 80.00 GiB of which"
    with pytest.raises(OutOfMemory) as raised:
        run(tmp_path, f"import torch; raise torch.OutOfMemoryError({said!r})")
    assert str(raised.value) == (
        "child: out of memory on the GPU: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (GPU 1 has "
        "80.0 GiB: this process holds 40.0 GiB, 30.0 GiB of it in use, and 0.5 GiB are free); free it of other "
        f"processes, such as a model server, use a larger one, or {HINT}; see {tmp_path / 'child.log'}"
    )


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="Linux's kernel chooses whom to end")
def test_the_kernel_ends_children_before_the_daemon(tmp_path: Path) -> None:
    found = run(tmp_path, "return {'score': int(Path('/proc/self/oom_score_adj').read_text())}")
    assert found["score"] > int(Path("/proc/self/oom_score_adj").read_text())
