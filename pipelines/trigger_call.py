"""One POST to a receiver: what it said, or why not. The address is a secret, as Slack's are: what
is told of a call never holds it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import aiohttp
import orjson

CALL_SECONDS = 10.0
ANSWER_CHARACTERS = 300
SECRET_CHARACTERS = 6  # parts of an address that are shorter hide nothing


class Undeliverable(RuntimeError):
    """A message that no attempt can bring to its receiver."""


class Later(RuntimeError):
    """A message was not taken for a reason that may pass. `seconds`: as the receiver asked."""

    def __init__(self, message: str, seconds: float = 0.0):
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Message:
    """Where a message goes, and what it is. `secrets`: what must not be told, besides the url."""

    url: str = field(repr=False)
    content: Mapping[str, object] = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def without_secrets(self, text: str) -> str:
        """`text` without the address, any telling part of it but the host, and the secrets."""
        scheme, _, rest = self.url.partition("://")
        authority, _, path = rest.partition("/")
        user, at, _ = authority.rpartition("@")
        parts = {self.url, f"{scheme}://{rest}", *self.secrets, *re.split("[/?&=#;]", path)}
        parts |= set(user.split(":")) if at else set()
        parts |= {unquote(part) for part in parts}
        for part in sorted(parts, key=len, reverse=True):
            if len(part) >= SECRET_CHARACTERS:
                text = text.replace(part, "…")
        return text


async def post(message: Message, headers: Mapping[str, str], body: bytes) -> str:
    """Send it once; what the receiver said.

    Raises: Later, Undeliverable.
    """
    timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(message.url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            said = (await answer.content.read(ANSWER_CHARACTERS)).decode(errors="replace")
            told = message.without_secrets(f"{answer.status} {said}".strip())
            asked = answer.headers.get("retry-after", "")
    except TimeoutError as error:
        raise Later(f"no answer within {CALL_SECONDS:g} s") from error
    except aiohttp.InvalidURL as error:
        raise Undeliverable("its address is malformed") from error
    except (aiohttp.ClientError, OSError) as error:
        told = message.without_secrets(f"{type(error).__name__}: {error}")
        raise Later(told) from error
    if answer.status in (408, 429) or answer.status >= 500:
        raise Later(told, float(asked) if asked.isdecimal() else 0.0)
    if answer.status >= 300:
        raise Undeliverable(told)
    return told


def body_of(message: Message) -> bytes:
    """The bytes that are signed and sent."""
    return orjson.dumps(message.content)
