"""What the kernel says of memory, read from files as Linux writes them."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from retuned.consumers.common.memory import available_bytes, oom_kills, size_of
from retuned.retrain.settings import TrainSettings
from retuned.retrain.training import memory
from retuned.retrain.training.memory import PROCESS_BYTES, needed_bytes

GIB = 2**30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable:   {8 * 2**20} kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("4:memory:/old\n0::/system.slice/retuned.service\n")
    return tmp_path / "proc"


def group(folder: Path, most: str, used: int, cached: int = 0, kills: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file {cached}\n")
    (folder / "memory.events").write_text(f"low 0\nhigh 0\nmax 7\noom {kills}\noom_kill {kills}\noom_group_kill 0\n")


def test_the_least_of_machine_and_limits_is_available(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    assert available_bytes(proc, groups) == 8 * GIB
    own = groups / "system.slice" / "retuned.service"
    group(own, "max", GIB)
    group(groups / "system.slice", str(6 * GIB), 5 * GIB, cached=GIB)
    assert available_bytes(proc, groups) == 3 * GIB
    group(own, str(2 * GIB), GIB)
    assert available_bytes(proc, groups) == GIB
    group(own, str(2 * GIB), 3 * GIB)
    assert available_bytes(proc, groups) == 0


def test_a_container_sees_its_group_as_the_root(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    group(tmp_path / "cgroup", str(4 * GIB), GIB, kills=2)
    assert available_bytes(proc, tmp_path / "cgroup") == 3 * GIB
    assert oom_kills(proc, tmp_path / "cgroup") == 2


def test_what_is_not_known_is_not_known(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path / "none") is None
    assert oom_kills(tmp_path / "none", tmp_path / "none") is None


def test_kills_are_those_of_the_own_group(proc: Path, tmp_path: Path) -> None:
    group(tmp_path / "cgroup" / "system.slice" / "retuned.service", "max", GIB, kills=1)
    group(tmp_path / "cgroup" / "system.slice", "max", GIB, kills=9)
    assert oom_kills(proc, tmp_path / "cgroup") == 1


def test_the_estimate_follows_the_base_model_and_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "has_gpu", lambda _: False)
    base = tmp_path / "base"
    base.mkdir()
    shapes = {"model.embed_tokens.weight": (500, 64), "layers.0.up.weight": (128, 64), "layers.0.norm.weight": (64,)}
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, base / "model.safetensors")
    bytes_of = 4 * (500 * 64 + 128 * 64 + 64)

    def needed(**settings: object) -> int:
        found = needed_bytes(base, TrainSettings.model_validate({"dtype": "float32", **settings}))
        assert found is not None
        return found - PROCESS_BYTES

    adapter = needed(rank=16) - needed(rank=8)
    assert needed(rank=8) == bytes_of + adapter
    assert needed(dtype="bfloat16", rank=8) < needed(rank=8)
    assert needed(method="qlora", rank=8) < needed(dtype="bfloat16", rank=8)
    assert needed(method="full") == bytes_of + 12 * 128 * 64  # embeddings and norms stay as they are
    assert needed_bytes(base, TrainSettings(memory_bytes=5)) == 5
    assert needed_bytes(tmp_path, TrainSettings()) is None
    (tmp_path / "broken.safetensors").write_bytes(b"weights")
    assert needed_bytes(tmp_path, TrainSettings()) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80000000000", 80 * 10**9),
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("80G", 80 * 10**9),
        ("80GiB", 80 * 2**30),
        ("1.5TiB", 3 * 2**39),
        ("512MiB", 2**29),
        ("16kB", 16_000),
        ("16B", 16),
    ],
)
def test_a_size_as_people_write_it(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "80GBs", "80 giga", "eighty", "8e10", "1iB"])
def test_what_is_no_size_is_told_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 80GB or 80GiB"):
        size_of(text)
