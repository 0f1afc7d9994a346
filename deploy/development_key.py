"""The state database as `up` leaves it: migrated, and with the local development key in it.

The key is made at the first `up`, kept in a 0600 file and printed by every `up`.
"""

from sqlalchemy.exc import SQLAlchemyError

from deploy.local import StackError
from deploy.migrations import upgrade
from deploy.ready import KEY_FILE
from gateway.database import open_database
from gateway.errors import NotFound
from gateway.keys import KeyStore
from gateway.settings import Settings, read_or_make_secret

ACTOR = "llmops up"
PREFIX = "sk-dev-"


def prepare_state(settings: Settings) -> str:
    """Bring the state database to the newest schema; returns the development key.

    Raises StackError where the database cannot be used.
    """
    try:
        upgrade(settings.database_url)
        return development_key(settings)
    except (SQLAlchemyError, ValueError) as error:
        raise StackError(f"the state database cannot be used: {error}") from error


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
