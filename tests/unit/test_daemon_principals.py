"""Principals and their tokens: made, rotated, revoked, and read again by a running daemon."""

import json
import os
import re
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.cli.main import main
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.roles import Role
from retuned.daemon.web import principals
from retuned.daemon.web.principals import Principals, add, revoke, rotate

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "principals.yaml"


def known(file: Path, **more: object) -> Principals:
    return Principals(HttpSettings(principals_file=file, **more))  # type: ignore[arg-type]


def role(of: Principals, token: str, now: datetime = NOW) -> Role | None:
    found = of.find(token, now)
    return found.role if found else None


def test_a_token_is_kept_as_a_hash_that_its_user_alone_can_read(file: Path) -> None:
    token = add(file, "anna", "operator", None, NOW)
    assert len(token) >= 40
    assert token not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert role(known(file), token) == "operator"
    assert role(known(file), token[:-1]) is None


def test_every_token_is_another_and_belongs_to_its_own_principal(file: Path) -> None:
    tokens = {name: add(file, name, "viewer", None, NOW) for name in ("anna", "bert", "carl")}
    assert len(set(tokens.values())) == 3
    found = known(file)
    assert {name: found.find(token, NOW).name for name, token in tokens.items()} == {name: name for name in tokens}  # type: ignore[union-attr]


def test_a_name_that_is_taken_or_is_none_is_refused(file: Path) -> None:
    add(file, "anna", "viewer", None, NOW)
    before = file.read_bytes()
    with pytest.raises(RetunedError, match=r"anna has one; .*--rotate"):
        add(file, "anna", "admin", None, NOW)
    for name in ("", "a b", "a\nb", "a\n", "é", "x" * 65, "-x"):
        with pytest.raises(RetunedError, match="is no name"):
            add(file, name, "viewer", None, NOW)
    assert file.read_bytes() == before


def test_a_running_daemon_learns_of_new_and_revoked_tokens(file: Path) -> None:
    anna = add(file, "anna", "viewer", None, NOW)
    running = known(file)
    bert = add(file, "bert", "operator", None, NOW)
    assert (role(running, anna), role(running, bert)) == ("viewer", "operator")
    revoke(file, "anna", NOW)
    assert (role(running, anna), role(running, bert)) == (None, "operator")
    revoke(file, "bert", NOW)
    assert role(running, bert) is None
    assert running.required, "the door is not open when nobody is left"
    with pytest.raises(RetunedError, match="holds no bert"):
        revoke(file, "bert", NOW)


def test_a_rotated_token_is_valid_for_a_day(file: Path) -> None:
    first = add(file, "anna", "labeller", None, NOW)
    running = known(file)
    second = rotate(file, "anna", None, NOW)
    day = timedelta(hours=24)
    assert role(running, first, NOW + day - HOUR) == role(running, second, NOW + day - HOUR) == "labeller"
    assert (role(running, first, NOW + day), role(running, second, NOW + day)) == (None, "labeller")
    rotate(file, "anna", None, NOW + HOUR)
    assert role(running, first, NOW + day) is None, "another rotation does not prolong it"
    revoke(file, "anna", NOW)
    assert role(running, first) is role(running, second) is None
    with pytest.raises(RetunedError, match="holds no anna"):
        rotate(file, "anna", None, NOW)


def test_a_rotated_token_expires_as_the_one_before_it_would_have(file: Path) -> None:
    day = timedelta(days=1)
    add(file, "carl", "operator", NOW + 30 * day, NOW)
    for hours in (0, 1):  # while the first one is still valid, and has a day left
        token = rotate(file, "carl", None, NOW + hours * HOUR)
    running = known(file)
    assert role(running, token, NOW + 30 * day - HOUR) == "operator"
    assert role(running, token, NOW + 30 * day) is None
    token = rotate(file, "carl", NOW + 60 * day, NOW + 2 * HOUR)
    assert role(running, token, NOW + 60 * day - HOUR) == "operator"


@pytest.mark.parametrize("http", [{}, {"viewer_token": "may-look-at-it-all"}])
def test_nobody_listens_to_other_machines_without_a_token_for_changes(http: dict[str, str], file: Path) -> None:
    open_to_all = HttpSettings(host="0.0.0.0", **http)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"^http.host 0.0.0.0: is reachable from other machines"):
        Principals(open_to_all)
    add(file, "anna", "admin", None, NOW)
    for more in ({"principals_file": file}, {"operator_token": "may-do-something"}):
        assert Principals(HttpSettings(host="0.0.0.0", **more)).required  # type: ignore[arg-type]


def test_a_token_expires(file: Path) -> None:
    token = add(file, "anna", "viewer", NOW + HOUR, NOW)
    running = known(file)
    assert role(running, token) == "viewer"
    assert role(running, token, NOW + HOUR) is None
    assert role(known(file), add(file, "anna", "admin", None, NOW + HOUR)) == "admin"  # the name is free again


@pytest.mark.parametrize(
    "content",
    ["", "principals:", "principals: {}", "[]", "principals: [x]", "a: [", "principals: []\nmore: 1", b"\xff", None],
)
def test_a_file_that_has_become_broken_changes_nothing_and_is_named(file: Path, content: str | bytes | None) -> None:
    token = add(file, "anna", "viewer", None, NOW)
    sound = file.read_bytes()
    running = known(file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    assert (role(running, token), role(running, "x" * 40)) == ("viewer", None)
    assert running.required
    assert running.problem is not None
    assert str(file) in running.problem
    with pytest.raises(ConfigurationError, match=f"^http.principals_file {file}: "):
        known(file)
    file.write_bytes(sound)
    revoke(file, "anna", NOW)
    assert role(running, token) is None
    assert running.problem is None


GOOD = {"name": "anna", "role": "viewer", "token_sha256": "0" * 64}


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD, "role": "root"},
        {**GOOD, "name": ""},
        {**GOOD, "name": "a\nb"},
        {**GOOD, "token_sha256": ""},
        {**GOOD, "token_sha256": "0" * 63},
        {**GOOD, "token_sha256": "G" * 64},
        {**GOOD, "expires_at": "tomorrow"},
        {**GOOD, "token": "let-me-in-if-you-please"},
        {"name": "anna", "role": "viewer"},
    ],
)
def test_an_entry_that_is_wrong_is_refused(file: Path, entry: dict[str, str]) -> None:
    file.parent.mkdir()
    file.write_text(yaml.safe_dump({"principals": [GOOD, entry]}))
    with pytest.raises(ConfigurationError, match="entry 2: ") as caught:
        known(file)
    assert "let-me-in" not in str(caught.value)


def test_dates_of_the_file_are_utc(file: Path) -> None:
    file.parent.mkdir()
    token = "a-token-made-elsewhere"
    hashed = principals.Principal.model_validate(GOOD).token_sha256
    assert hashed == "0" * 64
    file.write_text(f"principals: [{{name: a, role: viewer, token_sha256: {hash_of(token)}, expires_at: 2026-11-28}}]")
    running = known(file)
    midnight = datetime(2026, 11, 28, tzinfo=UTC)
    assert role(running, token, midnight - HOUR) == "viewer"
    assert role(running, token, midnight) is None


def hash_of(token: str) -> str:
    import hashlib

    return hashlib.sha256(token.encode()).hexdigest()


def test_an_empty_or_short_token_is_nobodys_even_if_its_hash_is_there(file: Path) -> None:
    file.parent.mkdir()
    tokens = ("", "x", "short-of-sixteen"[:15])
    entries = [
        {"name": f"p{number}", "role": "admin", "token_sha256": hash_of(token)} for number, token in enumerate(tokens)
    ]
    file.write_text(yaml.safe_dump({"principals": entries}))
    assert [role(known(file), token) for token in tokens] == [None] * 3


def test_one_token_for_two_principals_is_refused(file: Path) -> None:
    file.parent.mkdir()
    same = {"token_sha256": hash_of("a-token-that-two-have")}
    file.write_text(yaml.safe_dump({"principals": [GOOD | same, GOOD | same | {"name": "bert"}]}))
    with pytest.raises(ConfigurationError, match="anna and bert have the same token"):
        known(file)
    file.write_text(yaml.safe_dump({"principals": [GOOD | same]}))
    with pytest.raises(ConfigurationError, match="operator and anna have the same token"):
        known(file, operator_token="a-token-that-two-have")
    file.write_text(yaml.safe_dump({"principals": [GOOD, GOOD | same | {"role": "admin"}]}))
    with pytest.raises(ConfigurationError, match="anna has the roles viewer and admin"):
        known(file)


def test_the_keys_of_before_are_principals_too(file: Path) -> None:
    add(file, "anna", "admin", None, NOW)
    look, act = "may-look-at-it-all", "may-do-something-too"
    both = known(file, viewer_token=look, operator_token=act)
    assert [(one.name, one.role) for token in (look, act) if (one := both.find(token, NOW))] == [
        ("viewer", "viewer"),
        ("operator", "operator"),
    ]
    assert not Principals(HttpSettings()).required


def test_two_commands_at_once_lose_nothing(file: Path) -> None:
    names = [f"p{number}" for number in range(8)]
    threads = [threading.Thread(target=add, args=(file, name, "viewer", None, NOW)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.name for one in principals.read(file)) == names


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match=r"http.principals_file .*taken/principals.yaml: "):
        add(tmp_path / "taken" / "principals.yaml", "anna", "viewer", None, NOW)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=r"http.principals_file .*folder: "):
        add(tmp_path / "folder", "anna", "viewer", None, NOW)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_what_root_makes_belongs_to_the_daemons_user(file: Path) -> None:
    file.parent.mkdir()
    os.chown(file.parent, 12_345, 12_346)
    for name in ("anna", "bert"):
        add(file, name, "viewer", None, NOW)
        assert (file.stat().st_uid, file.stat().st_gid) == (12_345, 12_346)
        os.chown(file.parent, 0, 0)


def test_the_command(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump({"http": {"host": "0.0.0.0", "principals_file": str(file)}}))

    def token(*arguments: str) -> tuple[int, str, str]:
        status = main(["token", "--config", str(config), *arguments])
        return (status, *capsys.readouterr())

    status, made, _ = token("anna", "--role", "operator", "--expires", "2999-01-01")
    assert status == 0
    assert role(known(file), made.strip()) == "operator"
    status, rotated, _ = token("anna", "--rotate")
    assert role(known(file), rotated.strip()) == "operator"
    shown = json.loads(token("--list", "--json")[1])
    assert [(one["name"], one["role"], one["valid"]) for one in shown] == [("anna", "operator", True)] * 2
    assert made.strip() not in json.dumps(shown)
    assert token("ada", "--role", "labeller", "--workload", "support.*", "--workload", "hr")[0] == 0
    status, listed, _ = token("--list")
    assert (status, listed.count("anna"), "expires 2999-01-01 00:00 UTC" in listed) == (0, 2, True)
    assert re.search(r"^ada +labeller +made \S+ \S+ UTC +of support\.\*, hr$", listed, re.MULTILINE)
    assert token("--revoke", "ada")[0] == 0
    assert made.strip() not in listed
    assert hash_of(made.strip()) not in listed
    for wrong in (
        (),
        ("anna",),
        ("bert",),
        ("anna", "--list"),
        ("anna", "--rotate", "--role", "admin"),
        ("bert", "--role", "viewer", "--expires", "2020-01-01"),
        ("bert", "--role", "viewer", "--expires", "soon"),
        ("--revoke", "bert"),
    ):
        status, printed, said = token(*wrong)
        assert (status, printed) == (1, ""), wrong
        assert said.startswith("retuned: token: "), said
    assert token("--revoke", "anna")[:2] == (0, "anna: revoked\n")
    assert principals.read(file) == ()
    config.write_text("")
    assert "retuned: http.principals_file: set it" in token("--list")[2]


def test_a_token_of_an_expert_comes_with_a_link(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, http = tmp_path / "retuned.yaml", {"principals_file": str(file)}

    def link(*arguments: str, **more: str) -> tuple[str, str]:
        config.write_text(yaml.safe_dump({"http": http | more}))
        assert main(["token", "--config", str(config), *arguments]) == 0
        printed, beside = capsys.readouterr()
        return printed, beside.replace(printed.strip(), "TOKEN")

    expert, url = ("--role", "labeller"), "https://retuned.example.com/"
    made, beside = link("ada", *expert, "--workload", "support/eu", public_url=url)
    assert role(known(file), made.strip()) == "labeller"
    assert beside == (
        "Link for ada, who is signed in by it: "
        "https://retuned.example.com/sign-in?next=/workloads/support%252Feu/teach#TOKEN\n"
    )
    assert link("ada", "--rotate", public_url=url)[1] == beside
    for name, *bound in (
        ("bert",),
        ("berta", "--workload", "support.*"),
        ("bo", "--workload", "hr", "--workload", "it"),
    ):
        assert "/sign-in?next=/teach#TOKEN" in link(name, *expert, *bound, public_url=url)[1]
    local = link("carl", *expert)[1]
    assert "http://127.0.0.1:8321/sign-in?next=/teach#TOKEN" in local
    assert "It works on this machine alone: set http.public_url" in local
    for arguments in (("dora", "--role", "operator"), ("emil", *expert, "--no-conversations")):
        assert link(*arguments)[1] == ""
