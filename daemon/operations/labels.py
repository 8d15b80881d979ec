"""Operations on label requests: the answers that experts are asked to judge."""

import json
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field

from retuned.consumers.common.times import iso
from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import Answered, LabelRequest
from retuned.daemon.operations.fields import OfWorkload
from retuned.daemon.operations.operation import Caller, Content, Request, operation
from retuned.daemon.operations.rows import make_anew

if TYPE_CHECKING:
    from retuned.daemon.console.teach import About
    from retuned.daemon.operations.local import Local

log = logging.getLogger(__name__)
answering = threading.Lock()
"""Held from reading what experts did with a request to writing what one of them does: of two that agree, the second is
sent."""


@operation("GET", "/labels", least="labeller", bound="own", reads="conversations")
def labels(local: "Local", request: OfWorkload, caller: Caller) -> list[LabelRequest]:
    """List the answers that experts are asked to judge, oldest first."""
    from retuned.retrain.data.label_requests import open_requests

    found = open_requests(local.warehouse, local.only(request.workload, caller))
    return cast("list[LabelRequest]", [one for one in found if caller.may_see(one["workload"])])


class AnswerLabel(Request):
    id: Annotated[str, Field(description="the id of the request, or of the interaction that it is about")]
    name: Annotated[
        Literal["correction", "helpful", "hallucination", "same"],
        Field(
            description="by the reason of the request: hallucination (calibration: is something invented?), same or "
            "correction (conflict: do both answers mean the same?), helpful or correction (all others)"
        ),
    ]
    value: Annotated[
        str | bool,
        Field(
            description="of correction, the right answer, a text; of helpful, whether the answer is right, of "
            "hallucination, whether something is invented, of same, whether both mean the same: true or false"
        ),
        Content(),
    ]
    comment: Annotated[
        str | None, Field(description="kept with the answer; feedback, too, once the answer is sent"), Content()
    ] = None


@operation("POST", "/labels/{id}", least="labeller", by_leader=True, bound="own", outdates=False)
def answer_label(local: "Local", request: AnswerLabel, caller: Caller) -> Answered:
    """Answer a label request as an expert.

    It is sent once `labels.opinions` experts agree, with the comments of all who do, and counts once it is read from
    the topic. An expert may answer a request again: the later answer counts, and a correction of theirs before it is
    not taught. Once an answer is sent, a change on which too few experts agree is refused. The same answer again, with
    the same comment, is a repeated request: it changes nothing, and is sent only if it was not sent before.
    """
    with answering:
        return _answer(local, request, caller)


def _answer(local: "Local", request: AnswerLabel, caller: Caller) -> Answered:
    from retuned.daemon.console import teach
    from retuned.daemon.console.inbox import Work, agreeing, status

    context, name, who = local.jobs.context, request.name, caller.name or teach.NOBODY
    asked = _answered_by(teach.about(local.warehouse, request.id, who), request.id, name)
    caller.check(asked.workload)
    value = _checked(name, request.value, asked)
    now = context.now()
    redactor = local.redactor()  # what is stored here is redacted, too: it may wait before it is feedback
    scope = redactor.scope([value, request.comment])
    said = (request.comment or "").strip() or None
    comment = said and redactor.text(said, scope)
    stored = json.dumps(redactor.value(value, scope), ensure_ascii=False)
    work = Work(who, "answered", now, name, stored, comment=comment)
    others = [one for one in asked.work if one.expert != who]
    before = next((one for one in asked.answers if one.expert == who), None)
    is_unredacted = (stored, comment) == (json.dumps(value, ensure_ascii=False), said)  # else another may look the same
    if before is not None and is_unredacted and (before.name, before.value, before.comment) == (name, stored, comment):
        work = before  # a repeated request, which has the same ids
    opinions = context.experts_needed(asked.workload)
    same = agreeing([*others, work], work)
    awaited = status([*others, work], who, now, opinions)
    is_closed = not asked.open or any(one.sent for one in asked.work if one.expert == who)
    if is_closed and awaited in ("second", "disputed") and work is not before:  # nobody else is asked any more
        raise RetunedError(
            f"labels: this request is answered, and nobody else is asked; a change counts if {opinions} experts agree "
            "on it. Ask an operator to decide about the row (`retuned rows`)"
        )
    if before is not None and teach.withdraw(local.warehouse, asked, before, work):
        make_anew(local, asked.workload, who)
    if work is not before:
        # Before it is sent, so that it has the same ids if sending fails; the request stays open then.
        teach.write(local.warehouse, asked.id, work)
    if len(same) >= opinions and not work.sent:
        unsent, kafka = [one for one in same if not one.sent], local.settings.kafka
        comments = [
            (one, "comment", one.comment, teach.feedback_id(asked.id, one, "comment")) for one in unsent if one.comment
        ]
        messages = []
        for by, feedback, content, id in ((work, name, value, teach.feedback_id(asked.id, work)), *comments):
            author = caller.name if by is work else by.expert
            event = {
                "id": id,
                "timestamp": iso(now),
                "interaction_id": asked.interaction_id,
                "name": feedback,
                "value": content,
                "source": "expert",
            } | ({"user_id": author} if author else {})
            messages.append((asked.interaction_id, event))
        context.publisher.publish_all(kafka.expert_topic or kafka.feedback_topic, messages)
        for one in unsent:
            teach.write(local.warehouse, asked.id, replace(one, sent=True))
    log.info("%s: %s answered the label request %s", asked.workload, who, asked.id)
    done = "it counts as feedback once it is read from the topic, in some seconds"
    if len(same) < opinions:
        done = {
            "second": "another expert's answer is awaited",
            "disputed": "experts differ; one more decides",
        }.get(awaited, "it is kept; enough experts agree on another answer")
    return Answered(interaction_id=asked.interaction_id, done=done)


def _answered_by(asked: "list[About]", interaction: str, name: str) -> "About":
    """The request that feedback of this name answers."""
    from retuned.retrain.data.label_requests import ANSWERS

    if not asked:
        raise RetunedError(f"labels: no request about {interaction} is open; `retuned labels` lists those that are")
    known = {one.reason: ANSWERS.get(one.reason, ANSWERS[None]) for one in asked}
    found = next((one for one in asked if name in known[one.reason]), None)
    if found is None:
        expected = "; ".join(f"one with the reason {reason} by {' or '.join(names)}" for reason, names in known.items())
        raise RetunedError(f"labels: {name} answers no open request about {interaction}: {expected}")
    return found


def _checked(name: str, value: str | bool, asked: "About") -> str | bool:
    if name == "correction":
        value = value.strip() if isinstance(value, str) else ""
    if not isinstance(value, str if name == "correction" else bool) or value == "":
        expected = "the right answer, a text" if name == "correction" else "true or false"
        raise RetunedError(f"labels: {name}: expected {expected}")
    if name == "correction" and asked.reason != "conflict" and value == asked.answer.strip():
        raise RetunedError(
            "the correction is the answer that was given, unchanged: change the text, or choose “Right as it is” or "
            "“Wrong, and I do not know what is right”"
        )
    return value
