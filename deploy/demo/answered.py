"""What the request log says of a run's users: an account beside the one that the users keep."""

from datetime import datetime

from deploy.demo.stage import Answered
from gateway.request_log import LogReader

QUERY = """
SELECT adapter, count(*), count(*) FILTER (WHERE http_status <> 200), count(DISTINCT "user"),
  min(ts), max(ts)
FROM requests
WHERE model = ? AND starts_with("user", ?) AND ts >= ?
GROUP BY adapter ORDER BY adapter NULLS FIRST
"""


def answered(reader: LogReader, alias: str, users: str, since: datetime) -> list[Answered]:
    """Requests on `alias` since then of users whose id starts with `users`, by adapter.

    Raises: LogUnavailable.
    """
    rows = reader.select(QUERY, [alias, users, since]).rows
    return [Answered(*row) for row in rows]
