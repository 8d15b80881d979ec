"""`retuned token`: who may ask the daemon over HTTP."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from retuned.consumers.common.times import shown
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.sections import is_loopback
from retuned.daemon.roles import ROLES, Role
from retuned.daemon.settings import Settings
from retuned.daemon.web import principals


def token(
    settings: Settings,
    name: str | None,
    role: Role | None,
    expires: str | None,
    workloads: tuple[str, ...] = (),
    *,
    rotate: bool,
    revoke: str | None,
    list_all: bool,
    as_json: bool = False,
    conversations: bool = True,
) -> int:
    """Carry the command out.

    Raises:
        RetunedError: it names nothing to do, or what cannot be done.
    """
    file, now = settings.http.principals_file, datetime.now(UTC)
    if file is None:
        raise ConfigurationError("http.principals_file: set it to the file that is to keep principals, then try again")
    if sum([list_all, revoke is not None, name is not None]) != 1:
        raise RetunedError("token: give one of NAME, --revoke NAME, --list")
    if list_all and as_json:
        known = principals.read(file)
        found = [one.model_dump(mode="json", exclude={"token_sha256"}) | {"valid": one.is_valid(now)} for one in known]
        print(json.dumps(found, indent=2))
    elif list_all:
        print("\n".join(_listed(file, now)))
    elif revoke is not None:
        principals.revoke(file, revoke, now)
        print(f"{revoke}: revoked")
    elif name is not None and rotate:
        if role or workloads or not conversations:
            raise RetunedError(
                "token: --rotate keeps role, workloads and rights; to change them, --revoke the name and make it anew"
            )
        print(token := principals.rotate(file, name, _time(expires, now), now))
        _print_link(settings, file, name, token)
    elif name is not None:
        until = _time(expires, now)
        if role is None:
            raise RetunedError(f"token: give {name} a --role: {', '.join(ROLES)}")
        print(token := principals.add(file, name, role, until, now, workloads or None, conversations))
        _print_link(settings, file, name, token)
    return 0


def _print_link(settings: Settings, file: Path, name: str, token: str) -> None:
    """Print the link by which an expert signs in. On standard error: scripts read the token from standard output."""
    made = next(one for one in reversed(principals.read(file)) if one.name == name)
    if made.role != "labeller" or not made.conversations:
        return
    http = settings.http
    url = str(http.public_url or http.own_url).rstrip("/")
    one = made.workloads[0] if made.workloads and len(made.workloads) == 1 else "*"
    page = "/teach" if set("*?[") & set(one) else f"/workloads/{quote(one, safe='')}/teach"
    print(f"Link for {name}, who is signed in by it: {url}/sign-in?next={quote(page)}#{token}", file=sys.stderr)
    if http.public_url is None and is_loopback(http.address):
        print("It works on this machine alone: set http.public_url to the console's address.", file=sys.stderr)


def _listed(file: Path, now: datetime) -> list[str]:
    lines = []
    for one in principals.read(file):
        made = f"made {shown(one.created_at)}" if one.created_at else ""
        verb = "expires" if one.is_valid(now) else "EXPIRED"
        ends = f"{verb} {shown(one.expires_at)}" if one.expires_at else ""
        bound = f"of {', '.join(one.workloads)}" if one.workloads is not None else ""
        reads = "" if one.conversations else "without conversations"
        about = " ".join(filter(None, (ends, bound, reads)))
        lines.append(f"{one.name:<24} {one.role:<9} {made:<25} {about}".rstrip())
    return lines


def _time(text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise RetunedError(f"token: --expires: expected a date or a time such as 2027-03-31, got {text!r}") from error
    if time <= now:
        raise RetunedError(f"token: --expires: {text} is past")
    return time
