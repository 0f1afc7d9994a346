"""Work on the log table from a command: done here if no shipper runs, else left to the shipper."""

from gateway import orders
from gateway.configuration import Configuration
from gateway.orders import Order, Outcome
from gateway.settings import Settings
from gateway.shipper import Shipper, SpoolTaken, open_table, spool_lock
from gateway.traces import TraceSender

WAIT_SECONDS = 600.0


def carry_out(
    order: Order, settings: Settings, configuration: Configuration, *, seconds: float = WAIT_SECONDS
) -> Outcome:
    """Have the order carried out and return what was done. Raises OrderTimeout, TableError."""
    try:
        with spool_lock(settings.spool_dir):
            log = configuration.log
            traces = TraceSender.configured(configuration.traces) if order.kind == "erase" else None
            shipper = Shipper(settings.spool_dir, open_table(settings, log), log, traces)
            shipper.ship()
            return {**shipper.obey(order), "by": "this command"}
    except SpoolTaken:
        path = orders.leave(settings.home / "run", order)
        return {**orders.await_outcome(path, seconds), "by": "the running shipper"}
