"""`llmops data`: snapshots of raw material, and features put into the online store."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.listing import print_table
from deploy.commands.state import open_state
from gateway.configuration import ConfigurationError

if TYPE_CHECKING:
    from pipelines.snapshot_difference import ColumnDifference, TableDifference

SOURCE = Annotated[str, typer.Argument(help="where from")]
ID = Annotated[str, typer.Argument(metavar="ID", help="a snapshot; the first characters do")]
MOMENT = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
YEARS = range(1900, 2201)
UNALIKE = 0.1  # distance of distributions from which on a column is shown,
MISSING = 0.01  # or difference of the shares of missing values

app = typer.Typer(no_args_is_help=True)


@app.command()
def snapshot(
    source: SOURCE = "flights",
    since: Annotated[
        datetime | None, typer.Option(formats=MOMENT, help="events from then on, UTC")
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=MOMENT, help="events before that, as they were known then, UTC"),
    ] = None,
) -> None:
    """Freeze events and features of a period under an id made of their content, and keep them."""
    from pipelines.snapshots import freeze

    with open_state() as state, looked_up():
        made = freeze(installation_of(state), source, _utc(since), _utc(until))
    typer.echo(f"snapshot {made.id}")
    for file, facts in made.manifest.files.items():
        typer.echo(f"  {file}: {facts.rows:,} rows")
    typer.echo(f"  {made.folder}")


@app.command("list")
def list_() -> None:
    """Every snapshot that is kept, the newest last."""
    from pipelines.snapshots import listed

    with open_state() as state, looked_up():
        found = listed(installation_of(state))
    if not found:
        typer.echo("there is no snapshot yet; make one: llmops data snapshot")
        return
    table = Table("snapshot", "source", "since", "until", "rows, all tables", "made", "here")
    for one in found:
        since, until = (str(one[name])[:16] for name in ("since", "until"))
        here = "yes" if one["here"] else "no"
        rows = f"{one['rows']:,}"
        table.add_row(one["id"], one["source"], since, until, rows, str(one["created_at"]), here)
    print_table(table)


@app.command()
def checkout(snapshot_id: ID) -> None:
    """Fetch a snapshot's files if they are not here, and check them."""
    from pipelines.snapshots import checkout as fetched

    with open_state() as state, looked_up():
        found = fetched(installation_of(state), snapshot_id)
    typer.echo(f"snapshot {found.id} is whole: {found.folder}")


@app.command()
def diff(
    before: ID,
    after: ID,
    every: Annotated[bool, typer.Option("--all", help="columns that are alike too")] = False,
) -> None:
    """How two snapshots differ: rows, columns, and what has become of the columns' values."""
    from pipelines.snapshot_difference import difference
    from pipelines.snapshots import checkout as fetched

    with open_state() as state, looked_up():
        installation = installation_of(state)
        one, other = (fetched(installation, name) for name in (before, after))
        found = difference(one, other)
    typer.echo(f"{one.id} → {other.id}")
    rows = Table("table", "before", "after", "added", "gone", "changed")
    for table in found:
        counts = (*table.rows, table.added, table.gone, table.changed)
        rows.add_row(table.file, *(f"{count:,}" for count in counts))
    print_table(rows)
    _print_columns(found, every)


@app.command()
def materialise(
    snapshot_id: ID,
    until: Annotated[
        datetime | None,
        typer.Option(formats=MOMENT, help="as they were known then, UTC; its end by default"),
    ] = None,
) -> None:
    """Put a snapshot's features into the online store, from which predictions are served."""
    from pipelines.features import materialise as put
    from pipelines.features import open_features
    from pipelines.snapshots import checkout as fetched

    with open_state() as state, looked_up():
        installation = installation_of(state)
        found = fetched(installation, snapshot_id)
        moment = _utc(until) or datetime.fromisoformat(found.manifest.about["until"])
        about = found.manifest.about
        begins, ends = (datetime.fromisoformat(about[name]) for name in ("since", "until"))
        if not begins < moment <= ends:
            raise ConfigurationError(
                f"--until: {moment:%Y-%m-%d %H:%M} is not within the snapshot, which is from "
                f"{begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
            )
        redis_url = installation.configuration.model_server.redis_url
        with open_features(found.folder, redis_url) as store:
            views = put(store, moment)
    typer.echo(f"the online store holds {', '.join(views)} as of {moment:%Y-%m-%d %H:%M} UTC")


def _print_columns(found: "list[TableDifference]", every: bool) -> None:
    shown = Table("column", "type", "missing", "mean", "distance")
    alike = 0
    for table in found:
        for column in table.columns:
            before, after = column.missing
            same = column.types[0] == column.types[1] and abs(after - before) < MISSING
            if same and column.distance < UNALIKE and not every:
                alike += 1
            else:
                shown.add_row(f"{table.file.removesuffix('.parquet')}.{column.name}", *_row(column))
    if shown.row_count:
        print_table(shown)
    if alike:
        typer.echo(f"{alike} more columns are alike; see --all")


def _row(column: "ColumnDifference") -> tuple[str, str, str, str]:
    before, after = column.types
    if before is None or after is None:
        return ("gone" if after is None else f"new: {after}", "", "", "")
    kind = before if before == after else f"{before} → {after}"
    missing = " → ".join(f"{share:.1%}" for share in column.missing)
    means = "" if column.means is None else " → ".join(f"{mean:.4g}" for mean in column.means)
    return (kind, missing, means, f"{column.distance:.3f}")


def _utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.year not in YEARS:
        raise typer.BadParameter(f"{moment:%Y-%m-%d}: years are {YEARS.start} to {YEARS.stop - 1}")
    return moment.replace(tzinfo=UTC)
