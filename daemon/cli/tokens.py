"""`retuned token`: who may ask the daemon over HTTP."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.settings import Settings
from retuned.daemon.web import principals
from retuned.daemon.web.principals import ROLES

DESCRIPTION = (
    "Make a token for a principal: a person or a program that may ask the daemon over HTTP. The token is printed once; "
    "`http.principals_file` keeps its hash, readable by this user alone, and a running daemon takes it from there "
    "without a restart. Roles, each of which includes those before it: "
    + "; ".join(f"{role} {may}" for role, may in ROLES.items())
    + "."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Those of `retuned token`."""
    command.add_argument("name", nargs="?", metavar="NAME", help="of the principal, as it stands in the access log")
    command.add_argument("--role", choices=tuple(ROLES), help="what it may do")
    command.add_argument(
        "--expires", metavar="TIME", help="the token is refused from then on: a date or a time, ISO 8601, UTC"
    )
    command.add_argument(
        "--rotate",
        action="store_true",
        help="make another token for NAME, of the same role; the one before stays valid for 24 hours",
    )
    command.add_argument("--revoke", metavar="NAME", help="take all tokens of NAME away, from now on")
    command.add_argument("--list", action="store_true", help="list the principals")


def token(options: argparse.Namespace, settings: Settings) -> int:
    """Carry the command out.

    Raises:
        RetunedError: it names nothing to do, or what cannot be done.
    """
    file, now = settings.http.principals_file, datetime.now(UTC)
    if file is None:
        raise ConfigurationError("http.principals_file: set it to the file that is to keep principals, then try again")
    asked = [bool(options.list), options.revoke is not None, options.name is not None]
    if sum(asked) != 1:
        raise RetunedError("token: give one of NAME, --revoke NAME, --list")
    if options.list:
        print("\n".join(_listed(file, now)))
        return 0
    if options.revoke is not None:
        principals.revoke(file, options.revoke, now)
        print(f"{options.revoke}: revoked")
        return 0
    expires = _time(options.expires, now)
    if options.rotate:
        if options.role:
            raise RetunedError("token: --rotate keeps the role; to change it, --revoke the name and make it anew")
        print(principals.rotate(file, options.name, expires, now))
        return 0
    if options.role is None:
        raise RetunedError(f"token: give {options.name} a --role: {', '.join(ROLES)}")
    print(principals.add(file, options.name, options.role, expires, now))
    return 0


def _listed(file: Path, now: datetime) -> list[str]:
    lines = []
    for one in principals.read(file):
        made = f"made {one.created_at:%Y-%m-%d}" if one.created_at else ""
        verb = "expires" if one.is_valid(now) else "EXPIRED"
        ends = f"{verb} {one.expires_at:%Y-%m-%d %H:%M}" if one.expires_at else ""
        lines.append(f"{one.name:<24} {one.role:<9} {made:<16} {ends}".rstrip())
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
