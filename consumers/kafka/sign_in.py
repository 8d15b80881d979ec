"""Signs in to a broker by a token: OAUTHBEARER with client credentials, and AWS MSK IAM."""

import http.client
import json
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus, urlencode

from kafka import errors as kafka_errors
from kafka.net.sasl import register_sasl_mechanism
from kafka.net.sasl.msk import SaslMechanismAwsMskIam
from kafka.net.sasl.oauth import AbstractTokenProvider

from retuned.consumers.common.extras import needing
from retuned.consumers.common.text import first_line

TOKEN_SECONDS = 3.0  # less than a connection may take
_USED_SHARE = 0.8  # a broker asks for another token after 0.85 of what is left of the last one
_LONGEST_SECONDS = 86_400.0
_ANSWER_BYTES = 1 << 20
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750
_CODE = re.compile(r"[a-z_]{1,40}")


class SignInRefused(kafka_errors.SaslAuthenticationFailedError):  # type: ignore[misc]
    """What issues the credentials refuses this client, before the broker was asked."""


class SignInUnavailable(kafka_errors.KafkaConnectionError):  # type: ignore[misc]
    """What issues the credentials does not answer. Retry after a pause."""


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Tokens of a token endpoint by client credentials (RFC 6749, 4.4); one is used until it is about to expire."""

    def __init__(
        self, url: str, client: str, secret: str, scope: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        basic = b64encode(f"{quote_plus(client)}:{quote_plus(secret)}".encode()).decode()
        self._url, self._authorization, self._clock = url, f"Basic {basic}", clock
        self._form = {"grant_type": "client_credentials"} | ({"scope": scope} if scope else {})
        self._lock = threading.Lock()
        self._token, self._renewed_at, self._expires_at = "", clock(), clock()

    def token(self) -> str:
        """Returns a token that has not expired.

        Raises:
            SignInRefused, SignInUnavailable: there is none.
        """
        with self._lock:
            now = self._clock()
            if now >= self._renewed_at:
                try:
                    self._token, seconds = self._fetched()
                except (SignInRefused, SignInUnavailable):
                    if now >= self._expires_at:
                        raise
                else:
                    self._renewed_at, self._expires_at = now + seconds * _USED_SHARE, now + seconds
            return self._token

    def _fetched(self) -> tuple[str, float]:
        """Returns a token, and the seconds until it expires. Within TOKEN_SECONDS, whatever the endpoint does: the
        thread that asks also keeps the consumer in its group."""
        answers: queue.SimpleQueue[tuple[str, float] | Exception] = queue.SimpleQueue()
        threading.Thread(target=lambda: answers.put(self._answer()), daemon=True, name="kafka-token").start()
        try:
            answer = answers.get(timeout=TOKEN_SECONDS)
        except queue.Empty:
            answer = self._away("timeout")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _answer(self) -> tuple[str, float] | Exception:
        request = urllib.request.Request(self._url, urlencode(self._form).encode(), {"Accept": "application/json"})
        request.add_unredirected_header("Authorization", self._authorization)  # never sent to another server
        try:
            with urllib.request.urlopen(request, timeout=TOKEN_SECONDS) as response:
                answer = json.loads(response.read(_ANSWER_BYTES))
            token = answer["access_token"]
            if not _TOKEN.fullmatch(token):
                raise ValueError
            # Without a lifetime it serves one connection.
            return token, min(max(0.0, float(answer.get("expires_in") or 0)), _LONGEST_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                return self._refusal(error)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return self._away("timeout" if isinstance(reason, TimeoutError) else first_line(reason))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return SignInRefused(f"kafka.oauth_token_url {self._url}: does not answer with a token; check the address")

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        reason = f"status {error.code}"
        if error.code >= 500 or error.code in (408, 429):
            return self._away(reason)
        try:  # the code alone: a description may repeat what was sent
            code = json.loads(error.read(_ANSWER_BYTES))["error"]
            reason += f", {code}" if _CODE.fullmatch(code) else ""
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError):
            pass
        return SignInRefused(
            f"kafka.oauth_token_url {self._url}: refuses this client; check the address, kafka.oauth_client_id, "
            f"oauth_client_secret and oauth_scope ({reason})"
        )

    def _away(self, reason: str) -> Exception:
        return SignInUnavailable(
            f"kafka.oauth_token_url {self._url}: does not answer ({reason}); check the address, and that the token "
            "endpoint runs"
        )


class _MskIam(SaslMechanismAwsMskIam):  # type: ignore[misc]
    """kafka-python's signature of AWS, with errors that tell what is missing."""

    def auth_bytes(self) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            message: bytes = super().auth_bytes()
        except kafka_errors.KafkaConfigurationError as error:
            raise SignInRefused("kafka.sasl_mechanism AWS_MSK_IAM: no region; set AWS_DEFAULT_REGION") from error
        except AttributeError as error:  # there are no credentials
            raise SignInUnavailable(
                "kafka.sasl_mechanism AWS_MSK_IAM: no credentials of AWS; give this process a role, or set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (BotoCoreError, ClientError) as error:
            raise SignInUnavailable(
                f"kafka.sasl_mechanism AWS_MSK_IAM: the credentials of AWS cannot be read ({type(error).__name__})"
            ) from error
        return message


def msk_options() -> dict[str, Any]:
    """Returns kafka-python's options for AWS MSK IAM. Credentials and region are botocore's.

    Raises:
        ConfigurationError: botocore is not installed.
    """
    with needing("msk", "kafka.sasl_mechanism AWS_MSK_IAM"):
        import botocore.session  # noqa: F401
    register_sasl_mechanism("AWS_MSK_IAM", _MskIam, overwrite=True)
    return {"sasl_mechanism": "AWS_MSK_IAM"}
