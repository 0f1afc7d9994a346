"""Work on the log table from a command: done here if no shipper runs, else left to the shipper."""

from gateway import orders
from gateway.configuration import Log
from gateway.orders import Order, Outcome
from gateway.settings import Settings
from gateway.shipper import Shipper, SpoolTaken, open_table, spool_lock

WAIT_SECONDS = 600.0


def carry_out(
    order: Order, settings: Settings, log: Log, *, seconds: float = WAIT_SECONDS
) -> Outcome:
    """Have the order carried out and return what was done. Raises OrderTimeout, TableError."""
    try:
        with spool_lock(settings.spool_dir):
            shipper = Shipper(settings.spool_dir, open_table(settings, log), log)
            shipper.ship()
            return {**shipper.obey(order), "by": "this command"}
    except SpoolTaken:
        path = orders.leave(settings.home / "run", order)
        return {**orders.await_outcome(path, seconds), "by": "the running shipper"}
