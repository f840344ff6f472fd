"""`fabricctl`: its verbs.

Start-up counts: nothing but typer is imported here; a verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from fabric.cli import (
    audit,
    bench,
    cache,
    channel_io,
    doctor,
    events,
    listing,
    message_types,
    metrics,
    node,
    path,
    plan,
    plugin_author,
    schema,
    simulate,
    spec,
    topology,
    transform,
    workers,
)

HELP = """Show and change what a node of the fabric does.

Which node: --socket PATH, or FABRIC_SOCKET, or the default socket of node "a".
Every listing takes -o table|wide|json|yaml. A failure says what, why and the one thing to do.

Exit status: 0 done, 1 failed, 2 wrong usage; audit: 1 a difference, 3 no verdict;
plan and diff: 2 something differs.
"""

app = typer.Typer(
    name="fabricctl",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    node.up,
    node.down,
    node.status,
    doctor.doctor,
    topology.topology,
    plan.plan,
    plan.apply,
    plan.diff,
    plan.rollback,
    plan.history,
    spec.validate,
    schema.schema,
    audit.audit,
    events.events,
    metrics.metrics,
):
    app.command(verb.__name__)(verb)
app.add_typer(listing.kind_app("node"), name="node")
app.add_typer(
    workers.module_app, name="module", help="List, show and stop modules; read their logs."
)
app.add_typer(message_types.type_app, name="type")
app.add_typer(
    channel_io.channel_app, name="channel", help="List and show channels; send and echo messages."
)
app.add_typer(
    plugin_author.plugin_app,
    name="plugin",
    help="Write, test, load, try, replace and take away plugins.",
)
app.add_typer(cache.cache_app, name="cache")
app.add_typer(path.path_app, name="path")
app.add_typer(transform.transform_app, name="transform")
app.add_typer(simulate.simulate_app, name="simulate")
app.add_typer(bench.bench_app, name="bench")


@app.callback()
def _node(
    socket: Annotated[
        str, typer.Option("--socket", help="Attach socket of the node.", show_default=False)
    ] = "",
) -> None:
    if socket:
        os.environ["FABRIC_SOCKET"] = socket  # the option of a verb, when given, wins over it
