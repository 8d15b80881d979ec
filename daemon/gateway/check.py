"""The gateway's part of `retuned check`, which runs without the gateway's packages."""

from retuned.consumers.errors import RetunedError
from retuned.consumers.sections import secret
from retuned.daemon.gateway.events.experts import experts
from retuned.daemon.gateway.servers.models import LIST_SECONDS, Model, base_of
from retuned.daemon.gateway_settings import GatewaySettings, Upstream
from retuned.retrain.openai_api import Client
from retuned.retrain.release.targets.build import in_words
from retuned.retrain.settings import IncumbentSettings

_SET_KEY = "the gateway lists its models with its own key: set key_file of the upstream"


def check_upstream(upstream: Upstream) -> tuple[str, str]:
    """Requests the list of models of a model server.

    Returns:
        the result and a warning, in words; the warning may be empty.

    Raises:
        RetunedError: the server does not answer, refuses, or does not list the configured base model.
    """
    client = Client(
        upstream.url.rstrip("/"),
        "gateway.upstreams",
        upstream.key(),
        LIST_SECONDS,
        if_away="start it, or correct url",
        advice={401: _SET_KEY, 403: _SET_KEY},
        pauses=(),
    )
    answer = client.get("models")
    with client.expected("models"):
        listed = [Model(entry["id"], entry.get("parent"), entry.get("owned_by")) for entry in answer["data"]]
    base = base_of(listed, upstream.base_model)
    others = [model.id for model in listed if model.id != base]
    if base is not None:
        return f"has the base model {base}, {in_words(others, 'other model')}", ""
    if upstream.base_model:
        raise RetunedError(
            f"gateway.upstreams: {upstream.url} does not list {upstream.base_model}, and {in_words(others, 'model')}: "
            "set base_model of the upstream to the server's name of the base model"
        )
    return in_words(others, "model"), "none of them is recognised as the base model: set base_model if one is"


def check_incumbent(own: IncumbentSettings) -> tuple[str, str] | None:
    """Requests the models of an incumbent.

    Returns:
        the result and a warning, as `check_upstream`; None: there is no incumbent.

    Raises:
        RetunedError: the key cannot be read, or the incumbent does not answer or refuses it.
    """
    if own.url is None:
        return None
    key = secret(None, own.key_file, "incumbent.key_file")
    if key is None:
        return f"{own.url} gets the apps' keys, so it is not asked", ""
    if own.api == "anthropic":
        return f"{own.url} speaks Anthropic's API, so it is not asked", ""
    client = Client(own.url.rstrip("/"), "incumbent", key, LIST_SECONDS, if_away="correct incumbent.url", pauses=())
    answer = client.get("models")
    with client.expected("models"):
        listed = {entry["id"] for entry in answer["data"]}
    if own.model in listed:
        return f"{own.url} has {own.model}", ""
    return f"{own.url} lists {in_words(sorted(listed), 'model')}", f"{own.model} is not one: correct incumbent.model"


def check_keys(settings: GatewaySettings) -> str:
    """Reads the key files. Returns a summary in words.

    Raises:
        ConfigurationError: a file cannot be used.
    """
    clients, feedback = settings.client_keys(), settings.feedback_keys()
    secret(None, settings.daemon_token_file, "gateway.daemon_token_file")
    experts(settings)
    access = "no API key is required"
    if clients is not None:
        keys = "the key" if len(clients) == 1 else f"one of {len(clients)} keys"
        access = f"apps need {keys} in gateway.client_keys_file"
    from_experts = "" if feedback is None or settings.principals_file is None else ", also from experts"
    return f"{access}; {'no feedback' if feedback is None else 'feedback'} is accepted over HTTP{from_experts}"
