"""Selects the models that may answer a request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from retuned.daemon.gateway.cascade import CHAT, by_request, rule_for
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.incumbents import Incumbent
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.retrain.release.assignment import Arm, Route, Served, Unit

MESSAGES = "/v1/messages"
RECORDED = (CHAT, "/v1/completions", MESSAGES)
"""The routes whose answers are recorded, and on which a workload stands for its versions."""
WORKLOAD_HEADER = "X-Retuned-Workload"
"""Names the workload, percent-encoded, where the request names the incumbent's model."""


@dataclass(frozen=True)
class Target:
    """The models that may answer a request.

    Attributes:
        workload: "": the request belongs to no workload and is not recorded.
        models: the assigned model, then its fallbacks, in order.
        assignment: experiment and arm; None: there is no experiment.
        shadow: the candidate that also receives the request, in shadow.
        fallback: the model that answers if the servers of the assigned one fail; None: there is none.
        rule: the rule that sends the request to the incumbent; None: there is none.
        has_incumbent: whether the workload has an incumbent.
        asks_confidence: whether the confidence of versions is recorded.
        confident: by model, the least confidence of its answers; the incumbent replaces others.
        labels: by model, its possible answers, if they are labels.
        spare: without an incumbent, the version in service that replaces an invalid answer of another one.
        unit: what is assigned to arms; None: the request names a model itself.
        is_unchanged: whether the request keeps the `model` that the app named.
    """

    workload: str
    models: list[Served]
    conversation: str | None = None
    assignment: tuple[str, str] | None = None
    shadow: Served | None = None
    fallback: Served | None = None
    rule: str | None = None
    has_incumbent: bool = False
    asks_confidence: bool = False
    confident: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spare: Served | None = None
    unit: Unit | None = None
    is_unchanged: bool = False


def target_of(call: Call, path: str, headers: Mapping[str, str], routes: Routes, upstreams: Upstreams) -> Target:
    """Returns the models that may answer a request: those of its workload, or the model that it names.

    Raises:
        Refused: it names neither a workload nor a model, or its conversation header is malformed.
    """
    conversation = call.conversation(headers)
    asked = unquote(headers.get(WORKLOAD_HEADER, "")) or call.model
    if asked != call.model and path not in RECORDED and (route := routes.of(asked)):
        # The model of an embedding, for example, is another one than that of the workload's answers.
        if upstreams.incumbents.of(asked) is not None:
            return Target(asked, [route.base], is_unchanged=True)
        if upstreams.listing(call.model):
            asked = call.model
    workload, _, version = asked.rpartition("@")
    if route := routes.of(asked):
        unit = call.unit(conversation, route.unit) if route.experiment else ""
        arm = route.arm(unit)
        incumbent = upstreams.incumbents.of(asked)
        if incumbent is not None and (rule := rule_for(call, incumbent.cascade)):
            bought = by_request(asked)
            fallback = _fallback(route, bought, incumbent, upstreams)
            return Target(
                asked, [bought, *_some(fallback)], conversation, fallback=fallback, rule=rule, unit=route.unit
            )
        fallback = _fallback(route, arm, incumbent, upstreams)
        return Target(
            asked,
            list(dict.fromkeys((arm, *route.instead(arm), *_some(fallback)))),
            conversation,
            assignment=(route.experiment, arm.arm) if route.experiment else None,
            shadow=route.shadowed_by(unit),
            fallback=fallback,
            has_incumbent=incumbent is not None,
            asks_confidence=incumbent is not None and incumbent.cascade.helpful_rate is not None,
            confident=route.confident,
            labels=route.labels,
            spare=None if incumbent else _spare(route, arm, upstreams),
            unit=route.unit,
        )
    if (route := routes.of(workload)) and version == "base":
        return Target(workload, [route.base], conversation)
    if upstreams.listing(asked):
        return Target(workload if route else "", [Served(asked, asked)], conversation)
    known = ", ".join(routes.workloads()) or "none yet"
    raise Refused(
        404,
        "model_not_found",
        f"model {asked!r}: neither a workload nor the name of a model on a server; workloads are {known}. "
        "Add a new workload to gateway.workloads",
    )


def _some(served: Served | None) -> tuple[Served, ...]:
    return () if served is None else (served,)


def _spare(route: Route, assigned: Arm, upstreams: Upstreams) -> Served | None:
    """Returns the champion in place of a canary, or the one before it, if it is a version that a server has."""
    others = (one for one in route.instead(assigned) if one.name and upstreams.listing(one.name))
    return next(others, None) if assigned.name else None


def _fallback(route: Route, assigned: Served, incumbent: Incumbent | None, upstreams: Upstreams) -> Served | None:
    """Returns the model that answers if the servers of another one fail: the incumbent; of the incumbent itself, the
    version with most conversations, if a server has it. A version in shadow answers nobody."""
    if incumbent is None or not incumbent.is_fallback:
        return None
    if assigned.name:
        return route.base
    versions = [one for one in route.arms if one.name and one.share and upstreams.listing(one.name)]
    return max(versions, key=lambda one: one.share, default=None)
