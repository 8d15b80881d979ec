"""Object storage: files under one URL (s3:, gs:, az:, file:)."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import ConfigurationError, StoreUnavailable
from retuned.consumers.settings import StoreSettings

RETRY = timedelta(seconds=10)
REQUEST_SECONDS = 30
PAGE = 1_000
PART_BYTES = 8 << 20
"""The bytes of a file in one request, which have to arrive within REQUEST_SECONDS."""


class Objects:
    """Immutable files by key; thread-safe.

    Credentials, region and endpoint come from the environment variables of the provider's tools, such as
    AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
    """

    def __init__(self, settings: StoreSettings, *, make: bool = True, lead: Lead = alone) -> None:
        """Creates a client of the storage.

        Args:
            make: whether to create the folder of file:///folder.
            lead: checked before each deletion.

        Raises:
            ConfigurationError: store.objects_url is not set or not valid.
        """
        self.url, self._lead = settings.objects_url or "", lead
        if not self.url:
            raise ConfigurationError(
                "store.objects_url: not set; set the place of segments and artifacts, such as s3://bucket/prefix"
            )
        try:
            parts = urlsplit(self.url)
            if parts.scheme == "file":
                if make:
                    Path(unquote(parts.path)).mkdir(parents=True, exist_ok=True)
                self._store: Any = from_url(self.url)
            else:
                self._store = from_url(
                    self.url,
                    # Allows endpoints with plain HTTP from the environment.
                    client_options={"allow_http": True, "timeout": f"{REQUEST_SECONDS}s", "connect_timeout": "5s"},
                    retry_config={"max_retries": 3, "retry_timeout": RETRY},
                )
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(f"store.objects_url {self.url}: {first_line(error)}") from error

    def put(self, key: str, content: bytes | Path) -> None:
        """Stores bytes or a file atomically, and returns once it is stored.

        Raises:
            StoreUnavailable: the file may be stored or not.
        """
        try:
            obstore.put(self._store, key, content)
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def get(self, key: str) -> bytes:
        """Returns the content of a file.

        Raises:
            FileNotFoundError: the file does not exist.
            StoreUnavailable: the storage does not answer.
        """
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def parts(self, key: str) -> Iterator[bytes]:
        """Yields the content of a file of any size in parts.

        Raises:
            FileNotFoundError: the file does not exist.
            StoreUnavailable: the storage does not answer.
        """
        try:
            size = obstore.head(self._store, key)["size"]
            for start in range(0, size, PART_BYTES):
                yield bytes(obstore.get_range(self._store, key, start=start, length=min(PART_BYTES, size - start)))
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def list(self, prefix: str) -> Iterator[list[str]]:
        """Yields the keys with a prefix in pages; raises StoreUnavailable."""
        try:
            for page in obstore.list(self._store, prefix, chunk_size=PAGE):
                yield [item["path"] for item in page]
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes files; missing ones are ignored.

        Raises:
            StoreUnavailable: the storage does not answer.
            StandsBy: another daemon of the cluster leads or may lead; the remaining files are kept.
        """
        for key in keys:
            self._lead()
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"store.objects_url {self.url}: {first_line(error)}")
