"""What `retuned check` tries of the gateway, without what only the gateway needs to be installed."""

from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import secret
from retuned.daemon.gateway.events.experts import experts
from retuned.daemon.gateway.servers.models import LIST_SECONDS, Model, base_of
from retuned.daemon.gateway_settings import GatewaySettings, Upstream
from retuned.retrain.openai_api import Client
from retuned.retrain.release.targets.build import in_words

_SET_KEY = "the gateway lists its models with its own key: set key_file of the upstream"


def check_upstream(upstream: Upstream) -> tuple[str, str]:
    """Ask a model server for its models.

    Returns:
        what to say of it, and what a person should look at although nothing is broken; empty: nothing.

    Raises:
        RetunedError: it does not answer, refuses, or does not list the base model that is configured.
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
        listed = [Model(one["id"], one.get("parent"), one.get("owned_by")) for one in answer["data"]]
    base = base_of(listed, upstream.base_model)
    others = [model.id for model in listed if model.id != base]
    if base is not None:
        return f"has the base model {base}, {in_words(others, 'other model')}", ""
    if upstream.base_model:
        raise RetunedError(
            f"gateway.upstreams: {upstream.url} does not list {upstream.base_model}, and {in_words(others, 'model')}: "
            "set base_model of the upstream to the name that the base model has there"
        )
    return in_words(others, "model"), "none of them is taken for the base model: set base_model if one is"


def check_keys(settings: GatewaySettings) -> str:
    """Read the files of keys; returns what to say of them.

    Raises:
        ConfigurationError: of the first that is wrong.
    """
    clients, feedback = settings.client_keys(), settings.feedback_keys()
    secret(None, settings.daemon_token_file, "gateway.daemon_token_file")
    experts(settings)
    asked = "anybody may ask"
    if clients is not None:
        asked = (
            f"apps need {'the key' if len(clients) == 1 else f'one of {len(clients)} keys'} in gateway.client_keys_file"
        )
    whose = "" if feedback is None or settings.principals_file is None else ", of experts too"
    return f"{asked}; {'no feedback' if feedback is None else 'feedback'} is taken over HTTP{whose}"
