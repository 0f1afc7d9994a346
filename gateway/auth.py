"""Who is asking: the virtual key of a request. Deny is the default, and there is no fallback."""

import time

from gateway.errors import Unauthorized, Unavailable
from gateway.key_ring import KeyRing
from gateway.keys import Key

BEARER = b"bearer "


def bearer_token(authorization: bytes | None) -> str:
    """The token of an `Authorization: Bearer` header (RFC 6750); raises Unauthorized."""
    if authorization is None or authorization[:7].lower() != BEARER:
        raise Unauthorized
    try:
        return authorization[7:].strip().decode("ascii")
    except UnicodeDecodeError as error:
        raise Unauthorized from error


def authenticate(authorization: bytes | None, ring: KeyRing) -> Key:
    """The key in force, or Unauthorized, always the same; Unavailable while keys are unknown."""
    token = bearer_token(authorization)
    key = ring.find(token)
    if not ring.servable or (key is None and not ring.healthy):
        raise Unavailable("Keys cannot be checked now: the state database is away.")
    if key is None or not key.usable(time.time()):
        raise Unauthorized
    return key
