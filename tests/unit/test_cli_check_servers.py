"""What `retuned check` finds at the targets and at the model servers of the gateway: a line for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.kafka.brokers import free_port
from fixtures.models.tiny import tiny_llama, tiny_model
from fixtures.servers.models import SglangDouble, VllmDouble, serving
from retuned.daemon.cli import check as checks
from retuned.daemon.cli.main import main
from retuned.daemon.settings import load

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.processes]

AWAY = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(params=[VllmDouble, SglangDouble])
def double(request: pytest.FixtureRequest, base: Path) -> Iterator[VllmDouble]:
    with serving(base, request.param) as made:
        yield made


class Checked:
    """A configuration, and what is found where it names servers."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.file, self.base = folder, folder / "retuned.yaml", base

    def found(self, **sections: Any) -> dict[str, tuple[str, str]]:
        content = {
            "models": {"base": str(self.base), "directory": str(self.folder / "models")},
            "warehouse": {"path": str(self.folder / "retuned.duckdb")},
            "http": {"port": free_port()},
        }
        self.file.write_text(yaml.safe_dump(content | sections))
        lines = {name: (mark, text) for mark, name, text in checks.check(load(self.file))}
        return {
            name: line
            for name, line in lines.items()
            if name.startswith(("target", "upstream", "gateway", "incumbent"))
        }


@pytest.fixture
def checked(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Checked:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check_broker", lambda _: "not asked")  # it would be waited for
    return Checked(tmp_path, base)


def kind(double: VllmDouble) -> str:
    return "sglang" if isinstance(double, SglangDouble) else "vllm"


def targets(*targets: dict[str, Any]) -> dict[str, Any]:
    return {"targets": list(targets)}


def test_each_replica_has_a_line_with_what_it_serves_lists_and_loads(checked: Checked, double: VllmDouble) -> None:
    double.loaded["support@1"] = "a folder"
    found = checked.found(
        serving=targets(
            {"kind": "folder"}, {"kind": kind(double), "urls": [f"{double.url}/", AWAY], "maximum_rank": 32}
        )
    )
    assert found.pop(f"target {kind(double)} {double.url}") == (
        "ok",
        f"serves base ({checked.base}), loads adapters of rank 32 at most (maximum_rank), lists 1 adapter: support@1",
    )
    mark, text = found.pop(f"target {kind(double)} {AWAY}")
    assert (mark, f"{AWAY} does not answer" in text) == ("FAIL", True)
    assert found == {f"target folder {checked.folder / 'models'}": ("ok", "gets links")}
    assert (double.history, double.loaded) == ([], {"support@1": "a folder"})  # a check changes nothing


def test_a_server_that_loads_no_adapters_is_refused(checked: Checked, double: VllmDouble) -> None:
    double.loads = False
    ((mark, text),) = checked.found(serving=targets({"kind": kind(double), "urls": [double.url]})).values()
    assert (mark, "start it so that it loads adapters" in text, "--enable-lora" in text) == ("FAIL", True, True)


def test_another_base_model_than_the_workloads_is_a_warning(
    checked: Checked, double: VllmDouble, tmp_path: Path
) -> None:
    other = tiny_llama(tmp_path / "other", hidden=128)
    named = targets({"kind": kind(double), "urls": [double.url]})
    found = checked.found(serving=named, workloads={"sales": {"base": str(other)}})
    assert found[f"target {kind(double)} {double.url}"][0] == "ok"
    mark, text = found[f"target {kind(double)} {double.url} of sales"]
    assert (mark, f"that is not {other}, whose versions would not be loaded there" in text) == ("warn", True)


def test_more_adapters_than_slots_is_a_warning(checked: Checked, base: Path) -> None:
    with serving(base) as double:
        double.loaded |= {f"support@{number}": "a folder" for number in (1, 2, 3)}
        named = targets({"kind": "vllm", "urls": [double.url]})
        double.slots = 3
        assert [mark for mark, _ in checked.found(serving=named).values()] == ["ok"]
        double.slots = 2
        ((mark, text),) = checked.found(serving=named).values()
    assert (mark, "3 adapters share 2 slots (--max-loras)" in text) == ("warn", True)


def test_what_adapters_on_experts_need_is_named(checked: Checked, base: Path, tmp_path: Path) -> None:
    named = targets(*({"kind": kind, "urls": [AWAY]} for kind in ("vllm", "sglang")))
    experts = {"base": str(tiny_model("mixtral", tmp_path / "experts"))}
    attention = experts | {"train": {"target_modules": ["q_proj", "v_proj"]}}
    found = checked.found(serving=named, workloads={"sales": experts, "support": attention})
    with serving(base) as double:
        name = f"target vllm {double.url} of sales"
        found |= checked.found(
            serving=targets({"kind": "vllm", "urls": [double.url]}), workloads={"sales": experts, "support": attention}
        )
    assert "adapters on experts need its flag --enable-mixed-moe-lora-format" in found.pop(name)[1]
    assert not [text for _, text in found.values() if "--enable-mixed-moe-lora-format" in text]
    refusing = {name for name, (_, text) in found.items() if "on which sglang loads no adapter" in text}
    assert refusing == {f"target sglang {AWAY} of sales"}


def test_what_is_trained_is_compared_with_what_a_server_loads(checked: Checked) -> None:
    named = targets({"kind": "vllm", "urls": [AWAY]})
    found = checked.found(
        train={"rank": 64, "use_dora": True}, serving=named, workloads={"support": {"train": {"method": "full"}}}
    )
    mark, text = found[f"target vllm {AWAY}"]
    assert mark == "FAIL"
    assert "train.rank 64: vllm takes 16 (serving.targets maximum_rank)" in text
    assert "train.use_dora: vllm does not load DoRA; set it to false" in text
    mark, text = found[f"target vllm {AWAY} of support"]
    assert (mark, "train.method full: vllm loads adapters only" in text) == ("FAIL", True)


def test_files_of_tokens_and_secrets_that_cannot_be_read_are_named(checked: Checked) -> None:
    none = checked.folder / "none"
    webhook = {"kind": "webhook", "url": "http://127.0.0.1:9/", "secret_file": str(none)}
    found = checked.found(
        serving=targets(webhook, {"kind": "vllm", "urls": [AWAY], "token_file": str(none)}),
        gateway={"upstreams": [{"url": AWAY, "key_file": str(none)}], "client_keys_file": str(none)},
    )
    assert [mark for mark, _ in found.values()] == ["FAIL"] * 4
    for name, key in (
        ("target webhook http://127.0.0.1:9/", "secret_file"),
        (f"target vllm {AWAY}", "serving.targets: token_file"),
        (f"upstream {AWAY}", f"gateway.upstreams {AWAY}: key_file"),
        ("gateway", "gateway.client_keys_file"),
    ):
        assert f"{key}" in found[name][1]
        assert f"{none}" in found[name][1]
        assert "cannot be read (No such file or directory)" in found[name][1]
    (checked.folder / "secret").write_text("a secret of many characters")
    webhook["secret_file"] = str(checked.folder / "secret")
    ((mark, text),) = checked.found(serving=targets(webhook)).values()
    assert (mark, text) == ("ok", "gets signed requests; not checked")


def test_each_model_server_of_the_gateway_has_a_line(checked: Checked, base: Path) -> None:
    keys = checked.folder / "keys"
    keys.write_text("a key of apps that is long enough".replace(" ", "-"))
    (checked.folder / "token").write_text("right")
    with serving(base) as double:
        upstreams = [{"url": double.url}, {"url": f"{double.url}/"}, {"url": AWAY}]
        found = checked.found(serving=targets(), gateway={"upstreams": upstreams, "client_keys_file": str(keys)})
        assert found["targets"] == ("ok", "none: nothing is told what to serve")
        mark, text = found["gateway"]
        assert (mark, "apps need the key in gateway.client_keys_file" in text, "no feedback is accepted" in text) == (
            "ok",
            True,
            True,
        )
        assert found[f"upstream {double.url}"] == ("ok", "has the base model base, lists no other model")
        assert found[f"upstream {double.url}/"][0] == "ok"
        mark, text = found[f"upstream {AWAY}"]
        assert (mark, "does not answer" in text) == ("FAIL", True)
        double.loaded["support@1"] = "x"
        double.token = "right"
        ((mark, text),) = [line for name, line in checked.found(
            serving=targets(), gateway={"upstreams": [{"url": double.url}]}
        ).items() if name.startswith("upstream")]  # fmt: skip
        assert (mark, "status 401" in text, "set key_file of the upstream" in text) == ("FAIL", True, True)
        own = {"url": double.url, "key_file": str(checked.folder / "token")}
        found = checked.found(serving=targets(), gateway={"upstreams": [own]})
        assert found[f"upstream {double.url}"] == ("ok", "has the base model base, lists 1 other model: support@1")
        found = checked.found(serving=targets(), gateway={"upstreams": [own | {"base_model": "llama"}]})
        mark, text = found[f"upstream {double.url}"]
        assert (mark, "does not list llama, and lists 2 models: base, support@1" in text) == ("FAIL", True)


def test_each_incumbent_has_a_line(checked: Checked, base: Path) -> None:
    (checked.folder / "key").write_text("right\n")
    with serving(base) as double:
        double.token = "right"
        keyed = {"url": double.url, "model": "base", "key_file": str(checked.folder / "key")}
        incumbents = {
            "support": keyed,
            "sales": {"url": AWAY, "model": "mini"},
            "hr": keyed | {"model": "mini"},
            "legal": keyed | {"url": AWAY},
            "it": keyed | {"key_file": str(checked.folder / "none")},
        }
        workloads = {name: {"incumbent": own} for name, own in incumbents.items()}
        found = checked.found(serving=targets(), workloads=workloads)
        assert "incumbent" not in found
        assert found["gateway"][0] == "ok"
        assert found["incumbent of support"] == ("ok", f"{double.url} has base")
        assert found["incumbent of sales"] == ("ok", f"{AWAY} gets the apps' keys, so it is not asked")
        mark, text = found["incumbent of hr"]
        assert (mark, "lists 1 model: base; mini is not one: correct incumbent.model" in text) == ("warn", True)
        assert found["incumbent of legal"][0] == "FAIL"
        assert "incumbent.key_file" in found["incumbent of it"][1]


def test_the_exit_status_is_that_of_a_failed_check(checked: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    checked.found(serving=targets(), gateway={"upstreams": [{"url": AWAY}]})
    assert main(["--config", str(checked.file), "check"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line.partition(": ")[0] for line in failed] == [f"FAIL  upstream {AWAY}"]
