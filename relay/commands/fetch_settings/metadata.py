"""What `relay fetch-settings` asks Azure's instance metadata service: user data, this machine's id and tags, a token.

Sources: learn.microsoft.com, "Azure Instance Metadata Service" (header Metadata, no proxy, 5 requests a second),
"User Data for Azure Virtual Machine", "How to use managed identities on an Azure VM to acquire an access token"
(404, 410, 429 and 5xx are to be tried again).
"""

from __future__ import annotations

import json
import urllib.parse
from typing import Any, NamedTuple

from relay.commands.fetch_settings.http import Answer, FetchFailed, get
from relay.core.user_data import LARGEST_ANSWER, decode

USER_DATA = "/metadata/instance/compute/userData?api-version=2021-01-01&format=text"
COMPUTE = "/metadata/instance/compute?api-version=2021-02-01"
TOKEN = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=" + urllib.parse.quote(
    "https://storage.azure.com/", safe=""
)
SECONDS = 5.0  # for an answer
MOST = 256 * 1024  # bytes of a JSON answer
WHO = "metadata service"


class Machine(NamedTuple):
    """This machine."""

    id: str
    tags: dict[str, str]


class Metadata:
    """The metadata service at `url` (scheme and authority)."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._who = f"{WHO} {url}"

    def user_data(self) -> bytes:
        """The decoded user data of this machine. Raises FetchFailed and Malformed."""
        answer = self._get(USER_DATA, LARGEST_ANSWER)
        if answer.status != 200:
            raise FetchFailed(f"{self._who}: {answer.shown}", again=True)
        return decode(answer.body)

    def machine(self) -> Machine:
        """This machine's id and tags. Raises FetchFailed."""
        found = self._json(COMPUTE)
        machine, tags = found.get("vmId"), found.get("tagsList", [])
        if not isinstance(machine, str) or not machine:
            raise FetchFailed(f"{self._who}: the answer has no vmId, which settings_source.percentage needs")
        pairs = [tag for tag in tags if isinstance(tag, dict)] if isinstance(tags, list) else []
        return Machine(machine, {str(tag.get("name")): str(tag.get("value")) for tag in pairs})

    def token(self, client_id: str) -> str:
        """An access token for storage, of the identity with this client id, or of the only one. Raises FetchFailed."""
        path = TOKEN + (f"&client_id={client_id}" if client_id else "")
        found = self._json(path, "no token for the managed identity")
        token = found.get("access_token")
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
            raise FetchFailed(f"{self._who}: no token for the managed identity in the answer", again=True)
        return token

    def _json(self, path: str, what: str = "") -> dict[str, Any]:
        who = f"{self._who}: {what}" if what else self._who
        answer = self._get(path, MOST)
        if answer.status != 200:
            # 400 is for good: no such identity is assigned to this machine.
            raise FetchFailed(f"{who}: {answer.shown}", again=answer.status != 400)
        try:
            found = json.loads(answer.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise FetchFailed(f"{who}: the answer is not a JSON object", again=True)
        return found

    def _get(self, path: str, most: int) -> Answer:
        return get(self._who, self._url + path, {"Metadata": "true"}, seconds=SECONDS, most=most)
