"""What every storage keeps of the artifacts of a cluster: a folder, and S3."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.artifacts import Machine, content, keys, write
from fixtures.cluster.servers import S3_ENVIRONMENT, run_s3
from retuned.consumers.cluster import artifacts
from retuned.consumers.cluster.objects import PART_BYTES, Objects
from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import StoreSettings


@pytest.fixture(scope="module", params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("storage")
    if request.param == "file":
        yield (folder / "with a space").as_uri()
        return
    with run_s3(folder) as server, pytest.MonkeyPatch.context() as patch:
        endpoint = f"http://127.0.0.1:{server.port}"
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": endpoint}).items():
            patch.setenv(name, value)
        httpx.put(f"{endpoint}/bucket").raise_for_status()
        yield "s3://bucket/retuned"


@pytest.fixture
def objects(url: str, tmp_path: Path) -> Objects:
    return Objects(StoreSettings(objects_url=f"{url}/{tmp_path.name}"))


@pytest.fixture
def machines(objects: Objects, tmp_path: Path) -> Iterator[list[Machine]]:
    made = [Machine(tmp_path / "a", objects), Machine(tmp_path / "b", objects, epoch=2)]
    yield made
    for machine in made:
        machine.warehouse.close()


def version(machine: Machine, name: str = "3f2a91c0", **files: bytes) -> Path:
    path = write(machine.models / "support" / name, **{"adapter": b"\x00\x01", "card": b"card"} | files)
    machine.put("version", path)
    return path


def test_what_one_machine_writes_another_one_has(machines: list[Machine]) -> None:
    one, other = machines
    version(one, large=bytes(range(256)) * (PART_BYTES // 256) + b"end", empty=b"")
    one.put("dataset", write(one.models / "support" / "datasets" / "d1", train=b"rows"))
    one.reports.mkdir()
    for suffix in (".html", ".json"):
        (one.reports / f"2026-10-support{suffix}").write_text(suffix)
    one.put("report", one.reports / "2026-10-support")
    assert other.follow(one)
    assert content(other.models) == content(one.models)
    assert content(other.reports) == content(one.reports)
    assert other.artifacts.problems() == []


def test_of_what_changed_the_other_files_stay_where_they_are(machines: list[Machine], objects: Objects) -> None:
    one, other = machines
    path = version(one)
    before = json.loads(one.rows()[0]["files"])
    assert other.follow(one)
    (path / "card.bin").write_bytes(b"another card")
    one.artifacts.renew("version", path)
    after = json.loads(one.rows()[-1]["files"])
    assert after["adapter.bin"] == before["adapter.bin"]
    assert other.follow(one)
    assert content(other.models) == content(one.models)
    one.artifacts.renew("version", path)
    assert len(one.rows()) == 2, "the same files are the same artifact"
    (path / "adapter.bin").unlink()  # nothing has to be put back
    one.artifacts.delete_removed()
    assert keys(objects) == sorted(file["key"] for file in after.values())
    assert [row["removed_at"] for row in one.rows()] == [None]


def test_what_is_removed_leaves_the_storage_and_every_machine(machines: list[Machine], objects: Objects) -> None:
    one, other = machines
    kept, gone = version(one, "aaaaaaaa", adapter=b"kept"), version(one, "bbbbbbbb")
    one.reports.mkdir()
    (one.reports / "r1.html").write_text("")
    one.put("report", one.reports / "r1")
    assert other.follow(one)
    one.remove("version", gone)
    one.remove("report", one.reports / "r1")
    one.artifacts.delete_removed()
    assert len(one.rows()) == 1
    assert len(keys(objects)) == len(content(kept))
    assert other.follow(one)
    assert {path.name for path in (other.models / "support").iterdir()} == {"aaaaaaaa"}
    assert list(other.reports.iterdir()) == []
    one.artifacts.renew("version", gone)  # as a card that is written late
    assert len(one.rows()) == 1


@pytest.mark.parametrize(("damage", "why"), [(b"x", "does not have the recorded content"), (None, "does not exist")])
def test_what_is_damaged_or_missing_is_told_and_stops_nothing_else(
    machines: list[Machine], objects: Objects, damage: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machines
    version(one, "aaaaaaaa", adapter=b"whole")
    damaged = version(one, "bbbbbbbb", adapter=b"damaged")
    version(one, "cccccccc")
    [files] = (json.loads(row["files"]) for row in one.rows() if row["name"] == "support/bbbbbbbb")
    key = files["adapter.bin"]["key"]
    objects.delete([key])
    if damage is not None:
        objects.put(key, damage)
    assert not other.follow(one)
    [problem] = other.artifacts.problems()
    assert problem.startswith("version support/bbbbbbbb: ")
    assert f"{key} {why}" in problem
    assert {path.name for path in (other.models / "support").iterdir()} == {"aaaaaaaa", "cccccccc"}
    objects.put(key, b"damaged")
    assert not other.artifacts.follow(), "it is not fetched at every look"
    assert other.artifacts.problems() == [problem]
    monkeypatch.setattr(artifacts, "RETRY_SECONDS", 0.0)
    assert other.artifacts.follow()
    assert other.artifacts.problems() == []
    assert content(other.models / "support" / "bbbbbbbb") == content(damaged)


def test_files_that_no_row_names_go_with_the_next_leader(machines: list[Machine], objects: Objects) -> None:
    """As one leaves that is killed between the storage and the row."""
    one, other = machines
    path = version(one)
    named = keys(objects)
    one.artifacts.put("version", write(one.models / "support" / "bbbbbbbb", adapter=b"left over"))
    left = set(keys(objects)) - set(named)
    assert len(left) == 1
    one.artifacts.delete_removed()
    assert left < set(keys(objects)), "its row may be about to come"
    assert other.follow(one)
    other.put("version", write(other.models / "support" / "bbbbbbbb", adapter=b"left over"))
    of_other = set(keys(objects)) - set(named) - left
    one.artifacts.delete_removed()  # it does not know that it was overtaken
    assert of_other < set(keys(objects))
    other.artifacts.delete_removed()
    assert set(keys(objects)) == set(named) | of_other
    assert content(path)


def test_what_the_storage_has_lost_is_put_back(machines: list[Machine], objects: Objects) -> None:
    one, other = machines
    path = version(one)
    there = keys(objects)
    objects.delete(there)
    one.artifacts.delete_removed()
    assert keys(objects) == there
    assert other.follow(one)
    assert content(other.models / "support" / "3f2a91c0") == content(path)
    objects.delete(there)
    (path / "card.bin").unlink()
    one.artifacts.delete_removed()
    [problem] = one.artifacts.problems()
    assert problem.endswith("is lost, and not here either")


def test_an_artifact_that_is_removed_meanwhile_is_not_renewed(machines: list[Machine]) -> None:
    one, _ = machines
    path = version(one)
    (path / "card.bin").write_bytes(b"another card")
    kept = one.artifacts.put("version", path)
    one.remove("version", path)
    with pytest.raises(RetunedError, match="removed meanwhile"), one.warehouse.transaction() as cursor:
        kept(cursor)
    assert [row["removed_at"] is None for row in one.rows()] == [False]


def test_what_is_being_published_is_left_alone(machines: list[Machine]) -> None:
    """The leader follows, too: its files are there before its rows are."""
    one, _ = machines
    path = write(one.models / "support" / "3f2a91c0", adapter=b"", card=b"card")
    for card in (b"card", b"another card", b"a third card"):
        (path / "card.bin").write_bytes(card)
        kept = one.artifacts.put("version", path)
        with one.warehouse.transaction() as cursor:
            kept(cursor)
            assert one.artifacts.follow()
            assert (path / "card.bin").read_bytes() == card
        assert one.artifacts.follow()
        assert (path / "card.bin").read_bytes() == card


def test_at_a_start_files_here_are_looked_at(machines: list[Machine], objects: Objects) -> None:
    one, _ = machines
    path = version(one)
    before = content(path)
    (path / "adapter.bin").write_bytes(b"\x00\x02")
    (path / "card.bin").unlink()
    (path / "another").write_bytes(b"")
    one.start()
    assert one.artifacts.follow()
    assert content(path) == before
    for key in keys(objects):
        objects.delete([key])
    one.start()
    assert one.artifacts.follow(), "what is whole here is not asked for"


def test_no_file_is_written_outside_of_the_folder(machines: list[Machine]) -> None:
    one, other = machines
    version(one)
    [row] = one.rows()
    files = json.loads(row["files"])
    for name, wrong in (("support/3f2a91c0", {"../card.bin": files["card.bin"]}), ("../a/models/x", files)):
        one.warehouse.execute("UPDATE artifacts SET name = ?, files = ?", [name, json.dumps(wrong)])
        assert not other.follow(one)
        assert "outside of" in other.artifacts.problems()[0]
    assert not other.models.exists()
