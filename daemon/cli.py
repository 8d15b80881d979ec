"""The command line: `retuned`."""

import argparse
import json
import logging
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.pseudonyms import load_user_keys
from retuned.daemon.logs import RedactingFormatter
from retuned.daemon.settings import Settings, load

DEFAULT_CONFIG = Path("retuned.yaml")


def main(arguments: list[str] | None = None) -> int:
    """Parse, act, and turn an error into one line and exit status 1 (2: the command line itself is wrong)."""
    options = _parser().parse_args(arguments)
    formatter = RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.INFO, handlers=[handler])
    if not options.verbose:
        for chatty in ("apscheduler", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.ERROR)
        logging.getLogger("kafka").setLevel(logging.CRITICAL)  # what matters of it comes as our own errors
    try:
        status: int = options.act(options)
    except RetunedError as error:
        print(f"retuned: {formatter.redact(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retuned", description="Keeps a language model in step with the business that uses it."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config", type=Path, metavar="FILE", help=f"configuration (default: {DEFAULT_CONFIG}, if it is there)"
    )
    common.add_argument("--verbose", action="store_true", help="log more")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, act: Any, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=[common])
        added.set_defaults(act=act)
        return added

    run = command("run", _run, "run the daemon")
    run.add_argument(
        "--once",
        action="store_true",
        help="one pass: take in, measure, decide, retrain if it is time, archive; then exit",
    )
    command("check", _check, "try the configuration and every connection")
    status = command("status", _status, "what the daemon knows, for people or as JSON")
    status.add_argument("--json", action="store_true", help="as JSON")
    for name, help in (
        ("retrain", "retrain a workload now"),
        ("promote", "put a version into service"),
        ("rollback", "put the previous version back into service"),
    ):
        added = command(name, _command, help)
        added.set_defaults(name=name)
        added.add_argument("workload")
        if name == "promote":
            added.add_argument("version")
        added.add_argument("--reason", help="kept with the decision")
    letters = command("dead-letters", _dead_letters, "list what could not be decoded, or decode it again after a fix")
    letters.add_argument("action", choices=("list", "replay"))
    letters.add_argument("--limit", type=int, default=20, help="how many are listed, newest first (default: 20)")
    letters.add_argument("--reason", help="list those with this reason code only")
    letters.add_argument("--json", action="store_true", help="as JSON, with their payloads")
    pseudonym = command("pseudonym", _pseudonym, "print what a user is stored as, under each key, newest first")
    pseudonym.add_argument("user")
    command("config", _config, "print the example configuration, every key explained")

    demo = command(
        "demo", _demo, "the whole loop on this machine: a broker, a model, its users, and a change of policy"
    )
    demo.add_argument(
        "--folder", type=Path, default=Path("build/demo"), help="where everything is kept (default: build/demo)"
    )
    demo.add_argument(
        "--company", type=Path, metavar="FILE", help="another company in the form of daemon/demo_company.yaml"
    )
    demo.add_argument("--seed", type=int, default=0, help="repeats a run (default: 0)")
    demo.add_argument("--port", type=int, default=0, help="port of the status page (default: any free one)")
    demo.add_argument("--keep", action="store_true", help="leave everything running at the end, until Ctrl-C")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    file = options.config
    if file is None and DEFAULT_CONFIG.exists():
        file = DEFAULT_CONFIG
    return load(file)


def _run(options: argparse.Namespace) -> int:
    from retuned.daemon import app

    settings = _settings(options)
    if options.once:
        app.run_once(settings)
        return 0
    return app.run(settings)


def _check(options: argparse.Namespace) -> int:
    from retuned.daemon.check import check

    sound = True
    for name, problem, found in check(_settings(options)):
        sound = sound and not problem
        print(f"{'FAIL' if problem else 'ok':4}  {name}: {problem or found}")
    return 0 if sound else 1


def _status(options: argparse.Namespace) -> int:
    settings = _settings(options)
    answer = _ask(settings, "GET", "/api/v1/status")
    if answer is None:
        from retuned.daemon.offline import offline
        from retuned.daemon.status import as_json, status

        with offline(settings) as jobs:
            answer = json.loads(as_json(status(jobs.warehouse, jobs, None, None)))
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    print("\n".join(_summary(answer)))
    return 0


def _summary(status: dict[str, Any]) -> list[str]:
    """The status for a person at a terminal."""
    ingestion = status["ingestion"]
    broker = {True: "up", False: "DOWN", None: "not asked: no daemon is running"}[ingestion["broker_up"]]
    lines = [
        f"retuned {status['version']}, "
        + (f"running since {status['started_at']}" if status["running"] else "not running"),
        f"events    {ingestion['interactions']} interactions, {ingestion['feedback']} feedback, "
        f"{ingestion['dead_letters']} dead letters; broker {broker}",
    ]
    storage = status["storage"]
    rows, taken = (sum(table[what] for table in storage["archived"]) for what in ("rows", "bytes"))
    last = max((table["last_archived_at"] for table in storage["archived"]), default=None)
    lines.append(
        f"storage   warehouse {_megabytes(storage['used'])} of {_megabytes(storage['file'])} used; "
        + (f"archive {rows} rows in {_megabytes(taken)}, the last on {last[:10]}" if last else "nothing archived yet")
    )
    lines += [f"job {job} FAILED: {problem}" for job, problem in status["jobs"]["failures"].items()]
    for name, workload in status["workloads"].items():
        lines += ["", f"{name}", f"  champion    {name}@{workload['champion'] or 'base'}"]
        for figure in workload["quality"]:
            if figure["model"] == "*":
                lines.append(
                    f"  {figure['metric']:<28} {figure['value']:.3f}  ({figure['low']:.3f} to {figure['high']:.3f},"
                    f" n={figure['n']}, {figure['source']})"
                )
        if workload["drift"]:
            lines.append(f"  drift       {workload['drift'][0]['detail']}")
        if workload["decisions"]:
            decision = workload["decisions"][0]
            verdict = "yes" if decision["outcome"] else "no"
            lines.append(f"  decision    {decision['kind']}: {verdict}: {'; '.join(decision['reasons'])}")
        roi = workload["roi"]
        if roi["ratio"] is not None:
            sums = f"gains {roi['gains']:.2f}, costs {roi['costs']:.2f} {status['currency']}"
            lines.append(f"  ROI         {roi['ratio']:.2f}  ({sums})")
    return lines


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _command(options: argparse.Namespace) -> int:
    settings = _settings(options)
    arguments = {key: getattr(options, key) for key in ("version", "reason") if getattr(options, key, None)}
    path = f"/api/v1/workloads/{urllib.request.quote(options.workload, safe='')}/{options.name}"  # type: ignore[attr-defined]
    answer = _ask(settings, "POST", path, arguments)
    if answer is None:
        from retuned.daemon import commands
        from retuned.daemon.offline import offline

        with offline(settings) as jobs:
            answer = commands.carry_out(jobs, options.name, options.workload, arguments)
            jobs.retrain_waiting()
    print(f"{answer['workload']}: {answer['done']}")
    return 0


def _dead_letters(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.action == "replay":
        done = _ask(settings, "POST", "/api/v1/dead-letters/replay", {})
        if done is None:
            from retuned.daemon.offline import replay

            done = replay(settings)
        print(f"{done['replayed']} of {done['tried']} dead letters are events now; {done['stored']} were stored")
        return 0
    query = {"limit": options.limit} | ({"reason": options.reason} if options.reason else {})
    letters = _ask(settings, "GET", f"/api/v1/dead-letters?{urllib.parse.urlencode(query)}")
    if letters is None:
        from retuned.daemon.offline import letters as stored_letters

        letters = stored_letters(settings, options.limit, options.reason)
    if options.json:
        print(json.dumps(letters, indent=2))
        return 0
    for letter in letters:
        where = f"{letter['topic']}[{letter['partition']}]@{letter['offset']}"
        print(f"{letter['received_at'][:19]}  {where}  {letter['reason']}: {letter['detail']}")
    return 0


def _pseudonym(options: argparse.Namespace) -> int:
    settings = _settings(options)
    keys = load_user_keys(settings.privacy, settings.warehouse.path)
    print("\n".join(keys.pseudonyms(options.user)))
    return 0


def _config(_: argparse.Namespace) -> int:
    from retuned.daemon.example import example

    print(example(), end="")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from retuned.daemon.demo import demo

    return demo(options.folder, options.company, options.seed, options.port, options.keep)


def _ask(settings: Settings, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the running daemon; None when none is listening.

    Raises:
        RetunedError: the daemon refused; the text is its own.
    """
    host = settings.http.host if settings.http.loopback else "127.0.0.1"
    request = urllib.request.Request(
        f"http://{host}:{settings.http.port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    token = next((token for token, role in settings.http.tokens().items() if role == "operator"), None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never send a token to a proxy
    try:
        with opener.open(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        try:
            raise RetunedError(json.load(error)["error"]) from error
        except (ValueError, KeyError):
            raise ConfigurationError(
                f"http.port: what listens on {settings.http.port} answered {error.code} and is not retuned"
            ) from error
    except (urllib.error.URLError, ConnectionError):
        return None


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
