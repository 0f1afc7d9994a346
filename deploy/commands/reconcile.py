"""`llmops reconcile`: KServe InferenceServices as the registry's aliases say."""

import asyncio
from typing import Annotated

import typer

from deploy.commands.lifecycle import installation_of, looked_up
from deploy.commands.state import failed, open_state

app = typer.Typer()


@app.command("reconcile")
def reconcile(
    dry_run: Annotated[bool, typer.Option(help="show what would be changed")] = False,
    retry: Annotated[bool, typer.Option(help="try again what was not ready and went back")] = False,
    force: Annotated[
        bool, typer.Option(help="take over fields that somebody else has set")
    ] = False,
) -> None:
    """Bring each InferenceService to its alias's champion, and challenger if one is tried."""
    from deploy.inference_service import InferenceServices
    from deploy.reconcile import Orders, Reconciler
    from pipelines.cluster import kubeflow_of, kubernetes_api

    with open_state() as state, looked_up():
        installation = installation_of(state)
        plan = kubeflow_of(installation.configuration)
        if not plan.inference_services:
            raise failed("kubeflow.inference_services: says nothing, so there is nothing to do")
        server = kubernetes_api(plan, state.settings)
        services = InferenceServices(server, plan.kubernetes.namespace, force=force)
        orders = Orders(state.actor, dry=dry_run, retry=retry)
        well = asyncio.run(Reconciler(state.database, plan, services, orders).run(typer.echo))
    if not well:
        raise typer.Exit(1)
