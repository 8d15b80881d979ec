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
"""In one request for a part of a file: REQUEST_SECONDS are of a request, with what it returns."""


class Objects:
    """Files by key, written once and never changed. Threads may share it.

    Credentials, region and endpoint come from the environment, under the names that the provider's own tools use, such
    as AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
    """

    def __init__(self, settings: StoreSettings, *, make: bool = True, lead: Lead = alone) -> None:
        """
        Args:
            make: whether to make the folder of file:///folder.
            lead: checked before each file is deleted.

        Raises:
            ConfigurationError: store.objects_url is not set, or names nothing that is known.
        """
        self.url, self._lead = settings.objects_url or "", lead
        if not self.url:
            raise ConfigurationError(
                "store.objects_url: is not set; name the place of segments and artifacts, such as s3://bucket/prefix"
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
                    # Plain HTTP is spoken where an endpoint of the environment says so.
                    client_options={"allow_http": True, "timeout": f"{REQUEST_SECONDS}s", "connect_timeout": "5s"},
                    retry_config={"max_retries": 3, "retry_timeout": RETRY},
                )
        except (BaseError, OSError, ValueError) as error:
            raise ConfigurationError(f"store.objects_url {self.url}: {first_line(error)}") from error

    def put(self, key: str, content: bytes | Path) -> None:
        """Store bytes or a file, whole or not at all. Returns once it is stored.

        Raises:
            StoreUnavailable: it is not stored, or it is not known whether it is.
        """
        try:
            obstore.put(self._store, key, content)
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def get(self, key: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is no such file.
            StoreUnavailable: the storage does not answer.
        """
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def parts(self, key: str) -> Iterator[bytes]:
        """The content of a file of any size, in parts.

        Raises:
            FileNotFoundError: there is no such file.
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
        """Keys below a prefix, in pages; raises StoreUnavailable."""
        try:
            for page in obstore.list(self._store, prefix, chunk_size=PAGE):
                yield [item["path"] for item in page]
        except (BaseError, OSError) as error:
            raise self._unavailable(error) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files; one that is not there is none to delete.

        Raises:
            StoreUnavailable: the storage does not answer.
            StandsBy: another daemon of the cluster leads, or may; the rest is still there.
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
