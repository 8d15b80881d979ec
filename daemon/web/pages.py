"""The console: HTML of what operations return, and forms that ask for operations."""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse

from retuned.daemon import console as package
from retuned.daemon.console.answers import DAYS, RATINGS, Search
from retuned.daemon.console.version import CHANGES
from retuned.daemon.interaction import turns
from retuned.daemon.jsontext import plain
from retuned.daemon.operations import console, erasure, labels, memory, releases, rows, state, training
from retuned.daemon.operations.operation import API, Operation
from retuned.daemon.settings import Settings
from retuned.daemon.web.api import Api, caller_of
from retuned.daemon.web.rendering import POLICY, Rendering, fields_of, form_of, frame, may_do, parsed

NAME_MAX = 255
"""Bytes in the name of a file."""
ROWS_SHOWN = 50
TICK_SECONDS = 5.0
"""An open page is told of a newer snapshot this often."""
STREAMS = 200
"""Pages that may be told at once."""
STATIC = Path(package.__file__).parent / "static"
MEDIA = {".css": "text/css", ".js": "text/javascript"}
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'none'; form-action 'none'; sandbox allow-scripts"
)
"""Content-Security-Policy: reports bring their scripts with them, which get an origin of their own and may send nothing
anywhere."""
FILTERS = {"all": "All", "attention": "Need you", "busy": "Learning", "unrated": "No ratings"}
"""The filters of the overview."""
CHOICES = {
    "calibration": [
        ("Yes, the source supports all of it", "hallucination no"),
        ("No, something is invented", "hallucination yes"),
    ],
    "conflict": [
        ("Yes, both mean the same", "same yes"),
        ("No, they differ", "same no"),
        ("No, and this is right:", "correction"),
    ],
    None: [
        ("Right as it is", "helpful yes"),
        ("Wrong, this is right:", "correction"),
        ("Wrong, and I do not know what is right", "helpful no"),
    ],
}
"""What an expert may answer, by the reason of a request; None: any other."""
VERDICTS = tuple(dict.fromkeys(verdict for choices in CHOICES.values() for _, verdict in choices))
"""Values of the field `verdict` of the form; with correction, the field of that name has the right answer."""
EXPORTED = {"workload", "since", "until", "page"}
"""Fields of a search for answers that an export can be limited to, and the page, which is shown alone."""
LISTED = re.compile(rf"; (GET {API}/|`retuned )[^;]* lists? (them|those).*")
"""The route or the command that an error names to programs and on terminals; pages have links in their place."""
DIFFERENCES = {
    "added": "Added",
    "removed": "Removed",
    "answer": "Answered anew",
    "split": "In another split",
    "same": "The same",
}
"""Between two datasets."""


class Reporting(Protocol):
    """Has reports."""

    @property
    def reports(self) -> Path:
        """The folder of the reports."""


class Pages(Rendering):
    """The handlers of the pages."""

    def __init__(self, api: Api, service: Reporting, settings: Settings) -> None:
        super().__init__(api)
        self._service, self._settings = service, settings
        self._streams = 0

    async def index(self, request: Request) -> Response:
        found = await self._overview(request)
        states = found["workloads"]
        groups = {
            "all": states,
            "attention": [one for one in states if one.needs_person and may_do(request, one.finding.least)],
            "busy": [one for one in states if one.finding.level == "busy"],
            "unrated": [one for one in states if not one.facts.rated],
        }
        show = request.query_params.get("show", "all")
        show = show if show in groups else "all"
        filters = [(text, key, len(groups[key])) for key, text in FILTERS.items()]
        page = found | {"states": states, "ill": groups["attention"], "shown": groups[show]}
        return await self._page(request, "overview.html", section="/", show=show, filters=filters, **page)

    async def workload(self, request: Request) -> Response:
        if request.headers.get("hx-target") == "live" and (part := await self._live_part(request)):
            return part
        query = {name: value for name, value in request.query_params.items() if name in ("range", "since", "until")}
        found = await self._ask(request, console.history, **request.path_params, **query)
        status = plain(await self._api.recent(state.status))
        workload = request.path_params["workload"]
        return await self._page(
            request,
            "workload.html",
            section="/",
            range="" if query.get("since") else query.get("range", "7d"),
            ranges=tuple(console.RANGES),
            query=query,
            status=status["workloads"].get(workload),
            booked_at=status["booked_at"],
            currency=status["currency"],
            **_now(status, workload),
            **found,
        )

    async def _live_part(self, request: Request) -> Response | None:
        """What an open page of a workload shows anew: of snapshots that all share, without a query of its own."""
        status, workload = plain(await self._api.recent(state.status)), request.path_params["workload"]
        states = (await self._overview(request))["workloads"]
        found = next((one for one in states if one.facts.workload == workload), None)
        own = status["workloads"].get(workload)
        if found is None or own is None:
            return None
        about = {name: own[name] for name in ("objective", "base_model")}
        return await self._page(request, "workload/live.html", state=found, **about, **_now(status, workload))

    async def cancel(self, request: Request) -> Response:
        return await self._command(request, training.cancel, "run")

    async def rollback(self, request: Request) -> Response:
        return await self._command(request, releases.rollback, "version")

    async def promote(self, request: Request) -> Response:
        return await self._command(request, releases.promote, "version")

    async def _command(self, request: Request, command: Operation[Any, Any], *fields: str) -> Response:
        """A command about a workload, with a reason and these fields; it leads back to the workload's page."""
        form = await form_of(request, API + command.paths[0])
        if not form.get("reason", "").strip():
            raise HTTPException(400, "reason: expected a text; it is kept with the change")
        given = {name: form[name] for name in ("reason", *fields) if name in form}
        await self._ask(request, command, **request.path_params, **given)
        return RedirectResponse(_path(request).rpartition("/")[0], 303)

    async def system(self, request: Request) -> Response:
        status = plain(await self._api.recent(state.status))
        return await self._page(request, "system.html", section="/system", status=status)

    async def answers(self, request: Request) -> Response:
        asked = parsed(console.answers, request.query_params, is_text=True)
        found = await self._api.perform(console.answers, asked, request)
        query = {name: value for name, value in asked.model_dump().items() if value}
        overview = await self._overview(request)
        names = [one.facts.workload for one in overview["workloads"]]
        since, until = Search(**asked.model_dump()).times(overview["as_of"])
        export = {"workload": asked.workload} if asked.workload else {}
        export |= {"since": since.isoformat(), "until": until.isoformat()}
        return await self._page(
            request,
            "answers.html",
            section="/answers",
            search=asked,
            workloads=sorted(names),
            ratings=RATINGS,
            days=DAYS,
            newer=urlencode(query | {"page": asked.page - 1}),
            older=urlencode(query | {"page": asked.page + 1}),
            export=None if query.keys() - EXPORTED else urlencode(export),
            **found,
        )

    async def interaction(self, request: Request) -> Response:
        found = await self._ask(request, rows.interaction, **request.path_params)
        return await self._page(request, "interaction.html", section="/answers", interaction=found)

    async def version(self, request: Request) -> Response:
        found = await self._ask(request, console.version, **request.path_params)
        return await self._page(request, "version.html", section="/", **_shown_pairs(request, found))

    def report(self, request: Request) -> Response:
        name = request.path_params["id"]
        file = self._service.reports / f"{name}.html"
        if not re.fullmatch(r"[\w-]+", name) or len(file.name.encode()) > NAME_MAX or not file.is_file():
            raise HTTPException(404, "no such report; it may have been deleted (drift.keep_reports)")
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    def static(self, request: Request) -> Response:
        file = STATIC / request.path_params["name"]
        if file not in STATIC.iterdir() or file.suffix not in MEDIA:
            raise HTTPException(404, "no such file")
        return FileResponse(
            file,
            media_type=MEDIA[file.suffix],
            headers={"Content-Security-Policy": POLICY, "Cache-Control": "max-age=300"},
        )

    async def events(self, request: Request) -> Response:
        """Server-sent events: the time of each newer snapshot of the overview."""
        if self._streams >= STREAMS:
            raise HTTPException(503, f"{STREAMS} pages are open; this one does not reload by itself")

        async def ticks() -> AsyncIterator[str]:
            self._streams += 1
            try:
                seen = None
                while not await request.is_disconnected():
                    now = (await self._api.recent(console.overview))["as_of"]
                    yield f"data: {now.isoformat()}\n\n" if now != seen else ": nothing new\n\n"
                    seen = now
                    await anyio.sleep(TICK_SECONDS)
            finally:
                self._streams -= 1

        return StreamingResponse(ticks(), media_type="text/event-stream")

    def failed(self, request: Request, problem: str, code: int) -> Response:
        """Why there is no page; with the menu of who is known."""
        title = {403: "Not allowed", 404: "Not found", 503: "Not available now"}.get(code, "Not done")
        known = frame(request, {}) if hasattr(request.state, "principal") else {}
        if code == 404:
            problem = LISTED.sub("", problem)
        return self._bare("error.html", code, **known, title=title, detail=problem, back=_came_from(request))

    def asked_again(self, where: str) -> Response:
        """A page that asks for another one of this console. A browser that follows a link of another site, of a message
        or of a report sends no strict cookie; from here it does, if there is a session."""
        return self._bare("continue.html", 200, next=where)

    # Teaching

    async def teach(self, request: Request) -> Response:
        return await self._show_inbox(request)

    async def answer_label(self, request: Request) -> Response:
        """It leads to the next request; a change, back to the answers of this expert."""
        form = await form_of(request, "/api/v1/labels/{id}")
        workload, id = form.get("workload", ""), request.path_params["id"]
        try:
            if form.get("action") == "skip":
                found = await self._ask(request, console.work_on_label, id=id, state="skipped")
                done = "saved" if found["state"] == "answered" else "skipped"  # an answer stays
            else:
                done = "saved"
                if (verdict := form.get("verdict", "")) not in VERDICTS:
                    raise HTTPException(400, f"verdict: choose one of the answers, as {', '.join(VERDICTS)}")
                name, _, yes = verdict.partition(" ")
                value = form.get("correction", "") if name == "correction" else yes == "yes"
                comment = form.get("comment", "").strip() or None
                await self._ask(request, labels.answer_label, id=id, name=name, value=value, comment=comment)
        except HTTPException as error:
            return await self._show_inbox(request, error.detail, error.status_code, id, form)
        if form.get("action") == "change":
            return RedirectResponse(f"/teach/mine?{urlencode({done: id})}", 303)
        then = {"item": form["next"]} if form.get("next") else {}
        return RedirectResponse(f"{_inbox_of(workload)}?{urlencode(then | {done: id})}", 303)

    async def my_answers(self, request: Request) -> Response:
        answers = await self._ask(request, console.my_answers)
        saved = request.query_params.get("saved")
        done = "Saved." if any(one["id"] == saved for one in answers) else None
        page = {"answers": answers, "chosen": _chosen, "learns": self._learns, "done": done}
        return await self._page(request, "mine.html", section="/teach", **page)

    async def _show_inbox(
        self,
        request: Request,
        problem: str | None = None,
        code: int = 200,
        wanted: str | None = None,
        typed: dict[str, str] | None = None,
    ) -> Response:
        """A request, with what was typed about it before a problem, or answered before. What was typed about one that
        is not shown any more stands apart."""
        workload = request.path_params.get("workload") or (typed or {}).get("workload")
        wanted = wanted or request.query_params.get("item")
        inbox = await self._ask(request, console.inbox, workload=workload, item=wanted)
        item, own, saved, kept = inbox["item"], inbox["own"], None, dict[str, str]()
        if (id := request.query_params.get("saved")) and not problem:
            answers = await self._ask(request, console.my_answers, item=id)
            saved = next(iter(answers), None)
        if own is not None:
            is_text, value = own["name"] == "correction", own["value"]
            verdict = own["name"] if is_text else f"{own['name']} {'yes' if value else 'no'}"
            kept = {"verdict": verdict, "comment": own["comment"] or ""} | ({"correction": value} if is_text else {})
        is_gone = bool(wanted and (not item or item["id"] != wanted))
        page: dict[str, Any] = {
            "inbox": inbox,
            "item": item,
            "turns": turns(item["messages"]) if item else [],
            "own": own,
            "workload": workload,
            "here": _inbox_of(workload),
            "is_gone": is_gone,
            "choices": CHOICES.get(item["reason"], CHOICES[None]) if item else [],
            "kept": kept,
            "typed": kept if typed is None or is_gone else typed,
            "lost": _texts(typed) if typed and is_gone else [],
            "problem": problem,
            "saved": saved,
            "skipped": request.query_params.get("skipped"),
            "chosen": _chosen,
            "learns": bool(item) and self._learns(item["workload"]),
        }
        if not workload:
            page["waiting"] = sum(n for of, n in inbox["by_status"].items() if of != "answered")
        return await self._page(request, "teach.html", code, section="/teach", **page)

    def _learns(self, workload: str) -> bool:
        """Whether a model of a workload is trained."""
        return self._settings.for_workload(workload).models.base is not None

    # Approvals

    async def approval(self, request: Request) -> Response:
        return await self._show_approval(request)

    async def decide_approval(self, request: Request) -> Response:
        """It leads back to the page, which shows what was decided."""
        form = await form_of(request, "/api/v1/approvals/{id}")
        given = {name: form[name] for name in ("decision", "reason") if name in form}
        try:
            await self._ask(request, releases.decide_approval, **request.path_params, **given)
        except HTTPException as error:
            return await self._show_approval(request, given.get("reason", ""), error.detail, error.status_code)
        return RedirectResponse(_path(request), 303)

    async def _show_approval(
        self, request: Request, reason: str = "", problem: str | None = None, code: int = 200
    ) -> Response:
        found = plain(await self._ask(request, releases.approval, **request.path_params))
        compared: dict[str, Any] = {}
        if found["kind"] != "dataset" and may_do(request, "operator") and caller_of(request).conversations:
            asked = {"workload": found["workload"], "version": found["version"]}
            with suppress(HTTPException):  # retention may have removed it
                compared = _shown_pairs(request, await self._ask(request, console.version, **asked))
        rollout = self._settings.for_workload(found["workload"]).rollout
        listed = await self._ask(request, releases.approvals) if found["state"] != "waiting" else []
        page = compared | {
            "approval": found,
            "reason": reason,
            "problem": problem,
            "compared": bool(compared),
            "in_steps": len(rollout.steps) > 1 or rollout.shadow > 0,
            "others": [one for one in listed if one["state"] == "waiting"],
        }
        return await self._page(request, "approval.html", code, section="/", **page)

    # Rows

    async def rows(self, request: Request) -> Response:
        return await self._show_rows(request)

    async def decide_rows(self, request: Request) -> Response:
        """About one row or several; it leads back to the page."""
        fields = await fields_of(request, "/api/v1/rows")
        form, ids = dict(fields), [value for name, value in fields if name == "id"]
        given = {name: form[name] for name in ("action", "reason", "answer") if name in form}
        try:
            if not ids:
                raise HTTPException(400, "choose at least one row")
            await self._ask(request, rows.decide_rows, ids=ids, **given)
        except HTTPException as error:
            return await self._show_rows(request, error.detail, error.status_code)
        query = {name: value for name, value in request.query_params.items() if name not in ("saved", "of")}
        query |= {"saved": ids[0]} | ({"of": str(len(ids))} if len(ids) > 1 else {})
        return RedirectResponse(f"{_path(request)}?{urlencode(query)}", 303)

    async def _show_rows(self, request: Request, problem: str | None = None, code: int = 200) -> Response:
        given = {name: request.query_params.get(name) for name in ("state", "reason", "saved")}
        asked = request.query_params.get("page", "")
        number = int(asked) if re.fullmatch(r"[0-9]{1,6}", asked) else 0
        found = await self._ask(request, console.rows_page, **request.path_params, **given, page=number)
        for row in found["rows"]:
            parts = re.split(r"([^\s:,]+)", row["detail"])
            row["why"] = [(part, found["related"].get(part)) for part in parts if part]
        done = None
        if (saved := found["saved"]) and not problem:
            action = rows.DECIDED[saved["decision"]["action"] if saved["decision"] else "release"]
            count = request.query_params.get("of", "")
            several = f"{count} rows" if re.fullmatch(r"[0-9]{1,4}", count) else None
            done = f"Saved. {action}: {several or saved['question'] or saved['answer']}"
        query = {name: given[name] for name in ("state", "reason") if given[name] is not None}
        page = request.path_params | found | {"actions": rows.MEANINGS, "decided": rows.DECIDED, "done": done}
        page |= {"problem": problem, "asked": (given["state"], given["reason"]), "number": number}
        page |= {"before": urlencode(query | {"page": number - 1}), "after": urlencode(query | {"page": number + 1})}
        return await self._page(request, "rows.html", code, section="/", **page)

    async def datasets(self, request: Request) -> Response:
        """Two datasets side by side: those that are asked for, else the last two."""
        known = [one for one in await self._ask(request, rows.datasets, **request.path_params) if not one["removed_at"]]
        latest = [one["version"] for one in known]
        after = request.query_params.get("after") or next(iter(latest), None)
        older = latest[latest.index(after) + 1 :] if after in latest else []
        before = request.query_params.get("before") or next(iter(older), None)
        found = None
        if before and after:
            found = await self._ask(request, rows.compare_datasets, before=before, after=after, limit=ROWS_SHOWN)
            if found["workload"] != request.path_params["workload"]:
                raise HTTPException(404, f"datasets {before} and {after}: of another workload")
        page: dict[str, Any] = {
            "known": known,
            "before": before,
            "after": after,
            "found": found,
            "changes": DIFFERENCES,
        }
        return await self._page(request, "datasets.html", section="/", **request.path_params, **page)

    async def drift_examples(self, request: Request) -> Response:
        found = await self._ask(request, training.drift_examples, **request.path_params)
        return await self._page(request, "drift.html", section="/", examples=found, **request.path_params)

    async def memory(self, request: Request) -> Response:
        return await self._show_memory(request)

    async def decide_memory(self, request: Request) -> Response:
        """Decide about an entry of the memory; it leads back to the list."""
        form = await form_of(request, "/api/v1/memory/entries")
        given = {name: form[name] for name in ("action", "reason", "answer") if form.get(name)}
        try:
            await self._ask(request, memory.decide_memory, ids=[form.get("id", "")], **given)
        except HTTPException as error:
            return await self._show_memory(request, error.detail, error.status_code)
        query = f"?{request.url.query}" if request.url.query else ""
        return RedirectResponse(_path(request) + query, 303)  # a path: a standby or a proxy may speak another scheme

    async def _show_memory(self, request: Request, problem: str | None = None, code: int = 200) -> Response:
        asked = request.query_params.get("state")
        asked = asked if asked in memory.STATES else None
        entries = await self._ask(request, memory.memory_entries, **request.path_params, state=asked, limit=ROWS_SHOWN)
        status = await self._ask(request, state.workload_status, **request.path_params)
        own = plain(status)["workloads"].get(request.path_params["workload"], {}).get("memory", {})
        page: dict[str, Any] = {"mode": own.get("mode"), "counts": own.get("entries", {}), "most": ROWS_SHOWN}
        page |= {"entries": entries, "states": memory.STATES, "asked": asked, "problem": problem}
        return await self._page(request, "memory.html", code, section="/", **request.path_params, **page)

    # Erasures

    async def erasures(self, request: Request) -> Response:
        return await self._show_erasures(request)

    async def forget(self, request: Request) -> Response:
        """The first form shows what is found, with the second one, which erases that."""
        form = await form_of(request, API + erasure.forget.paths[0])
        given = {name: form[name].strip() for name in erasure.FIELDS if form.get(name, "").strip()}
        events = {name: value for name, value in given.items() if name != "reason"}
        try:
            if form.get("action") == "erase":
                await self._ask(request, erasure.forget, **given)
                return RedirectResponse(_path(request), 303)
            found = await self._ask(request, erasure.preview_erasure, **events)
        except HTTPException as error:
            return await self._show_erasures(request, given, None, error.detail, error.status_code)
        return await self._show_erasures(request, given, erasure.summary({**found}))

    async def _show_erasures(
        self,
        request: Request,
        given: dict[str, str] | None = None,
        found: list[str] | None = None,
        problem: str | None = None,
        code: int = 200,
    ) -> Response:
        listed = plain(await self._ask(request, erasure.erasures))
        page = {"erasures": listed, "fields": erasure.FIELDS.items(), "given": given or {}, "found": found}
        return await self._page(request, "erasures.html", code, section="/system", problem=problem, **page)


def _came_from(request: Request) -> str | None:
    """The page of this console on which a person followed a link or sent a form; None: it is not known."""
    page = urlsplit(request.headers.get("referer", ""))
    if page.netloc != request.headers.get("host") or not re.match(r"/[^/\\]", page.path):
        return None
    back = page.path + (f"?{page.query}" if page.query else "")
    return None if back == _path(request) + (f"?{request.url.query}" if request.url.query else "") else back


def _path(request: Request) -> str:
    """The path as it was sent: a name keeps its encoded slashes."""
    return str(request.scope["raw_path"].decode())


def _inbox_of(workload: str | None) -> str:
    return f"/workloads/{quote(workload, safe='')}/teach" if workload else "/teach"


def _texts(typed: dict[str, str]) -> list[tuple[str, str]]:
    """What an expert typed into the form of a request, each text with its name."""
    correction = typed.get("correction", "") if typed.get("verdict") == "correction" else ""
    texts = (("The right answer", correction), ("Comment", typed.get("comment", "")))
    return [(name, text.strip()) for name, text in texts if text.strip()]


def _chosen(answer: dict[str, Any]) -> str:
    """What an expert chose, as it is read on the form."""
    name, value = answer["name"], answer["value"]
    key = name if name == "correction" else f"{name} {'yes' if value else 'no'}"
    texts = {verdict: text for text, verdict in CHOICES.get(answer["asked_for"], CHOICES[None])}
    return texts.get(key, key)


def _now(status: dict[str, Any], workload: str) -> dict[str, Any]:
    """The retrainings of a workload that are under way or wait."""
    runs = {name: [one for one in status[name] if one["workload"] == workload] for name in ("under_way", "queue")}
    return {"workload": workload} | runs


def _shown_pairs(request: Request, found: dict[str, Any]) -> dict[str, Any]:
    """What is shown of a version, with the kind of change that was asked for, else the first there is."""
    show = request.query_params.get("show")
    if show not in CHANGES:
        show = next((one for one in CHANGES if found["counts"][one]), "worse")
    return found | {"changes": CHANGES, "show": show}
