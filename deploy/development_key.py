"""The local development key: made at the first `up`, kept in a 0600 file, printed by every `up`."""

from deploy.ready import KEY_FILE
from gateway.database import open_database
from gateway.errors import NotFound
from gateway.keys import KeyStore
from gateway.settings import Settings, read_or_make_secret

ACTOR = "llmops up"
PREFIX = "sk-dev-"


def development_key(settings: Settings) -> str:
    """The key, known to the state database. One that was deleted is followed by a new one."""
    database = open_database(settings.database_url)
    try:
        store = KeyStore(database, settings.key_digest_secret())
        path = settings.home / KEY_FILE
        key = read_or_make_secret(path, prefix=PREFIX)
        if _deleted(store, key):
            path.unlink()
            key = read_or_make_secret(path, prefix=PREFIX)
        if not _known(store, key):
            store.generate(actor=ACTOR, key=key, metadata={"purpose": "local development"})
        return key
    finally:
        database.close()


def _known(store: KeyStore, key: str) -> bool:
    try:
        store.info(key)
    except NotFound:
        return False
    return True


def _deleted(store: KeyStore, key: str) -> bool:
    try:
        return store.info(key).deleted_at is not None
    except NotFound:
        return False
