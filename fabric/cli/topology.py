"""`fabricctl topology`: what this machine is made of, and what the fabric on it joins.

Without a node it shows the machine alone; a file or a copy of another machine's sysfs takes the machine's place.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fabric import errors
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Socket, connect

if TYPE_CHECKING:
    from fabric.paths.discovery.diff import Difference
    from fabric.paths.discovery.model import Topology

EXIT_DIFFERENT = 2


class Form(enum.StrEnum):
    """What `-o` takes here."""

    tree = "tree"
    table = "table"
    json = "json"
    yaml = "yaml"
    xml = "xml"


class Drawing(enum.StrEnum):
    """What `--graph` takes."""

    svg = "svg"
    dot = "dot"
    mermaid = "mermaid"


FormOption = Annotated[
    Form,
    typer.Option("--output", "-o", help="tree, table, json, yaml, or xml (NCCL's topology XML)."),
]
Graph = Annotated[
    Optional[Drawing],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option("--graph", help="Draw the machine: svg, dot or mermaid.", show_default=False),
]
Earlier = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--diff", metavar="FILE", help="What differs since this dump (-o json).", show_default=False
    ),
]
From = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--from",
        metavar="FILE",
        help="Show a file: a dump, NCCL's or hwloc's XML.",
        show_default=False,
    ),
]
Root = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--sysfs-root",
        metavar="PATH",
        help="Show the machine whose sysfs was copied here: a folder or a tar archive.",
        show_default=False,
    ),
]
Alone = Annotated[bool, typer.Option("--machine", help="The machine alone: ask no node.")]


def topology(
    socket: Socket = None,
    output: FormOption = Form.tree,
    graph: Graph = None,
    diff: Earlier = None,
    file: From = None,
    sysfs_root: Root = None,
    machine: Alone = False,
) -> None:
    """Show devices, links and rails of this machine, and of a node on it: nodes, processes, channels with their flows.

    With --diff, the exit status is 2 when something differs.
    """
    if file and sysfs_root:
        raise typer.BadParameter("--from and --sysfs-root name two machines; give one")
    if graph and output is not Form.tree:
        raise typer.BadParameter("--graph draws, -o prints; give one")
    is_about_machine = bool(file or sysfs_root or machine or graph or diff or output is Form.xml)
    with failing("cannot show the topology"):
        answer = None if is_about_machine else _ask(socket)
        found = _read(file, sysfs_root)
    if diff is not None:
        _show_differences(diff, found, output)
    elif graph is not None:
        sys.stdout.write(_draw(found, graph))
    else:
        _show(found, answer, output, may_have_node=not is_about_machine)


def _ask(socket: str | None) -> dict[str, Any] | None:
    """Return a node's answer; None when nobody named one and none runs here."""
    try:
        with connect(socket) as client:
            return client.topology()
    except errors.BrokenError as error:
        if socket is None and error.context.get("unreachable"):
            return None
        raise


def _read(file: str | None, sysfs_root: str | None) -> Topology:
    from fabric.paths.discovery import load, machine

    if file is not None:
        return load.load(file)
    return machine.read_root(sysfs_root) if sysfs_root else machine.read_machine()


def _show(
    found: Topology, answer: Mapping[str, Any] | None, output: Form, may_have_node: bool
) -> None:
    from fabric.cli import topology_tree
    from fabric.paths.discovery import nccl_write

    if output is Form.xml:
        sys.stdout.write(nccl_write.write(found))
    elif output in (Form.json, Form.yaml):
        _print_values({**(answer or {}), "machine": _values(found)}, output)
    else:
        machine = topology_tree.render if output is Form.tree else topology_tree.devices
        sys.stdout.write(machine(found) + "\n")
        if answer is not None:
            from fabric.cli import topology_fabric

            sys.stdout.write(f"\n{topology_fabric.render(answer)}\n")
        elif may_have_node:
            sys.stdout.write("\nno node runs here: fabricctl up starts one\n")


def _values(found: Topology) -> dict[str, Any]:
    from fabric.paths.discovery import dump

    return dump.to_json(found)


def _print_values(values: Any, output: Form) -> None:
    if output is Form.json:
        text = json.dumps(values, indent=2, ensure_ascii=False)
    else:
        import yaml

        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n")
    sys.stdout.write(text + "\n")


def _draw(found: Topology, graph: Drawing) -> str:
    from fabric.cli import topology_graph, topology_svg, topology_tree

    drawers: dict[Drawing, Callable[[Topology], str]] = {
        Drawing.svg: topology_svg.svg,
        Drawing.dot: topology_graph.dot,
        Drawing.mermaid: topology_graph.mermaid,
    }
    return topology_tree.plain(drawers[graph](found))


def _show_differences(file: str, found: Topology, output: Form) -> None:
    from fabric.paths.discovery import diff, load

    if output is Form.xml:
        raise Failure(
            "cannot show what differs",
            "NCCL's XML has no words for it",
            "use -o tree, json or yaml",
        )
    with failing(f"cannot compare with {file}"):
        changes = diff.differences(load.load(file), found)
    if output in (Form.json, Form.yaml):
        _print_values([_difference(change) for change in changes], output)
    else:
        from fabric.cli.topology_tree import plain

        lines = [plain(str(change)) for change in changes] or [f"nothing differs from {file}"]
        sys.stdout.write("\n".join(lines) + "\n")
    if changes:
        raise typer.Exit(EXIT_DIFFERENT)


def _difference(change: Difference) -> dict[str, str]:
    words = {"+": "added", "-": "removed", "~": "changed"}
    row = {"what": words[change.sign], "subject": change.subject}
    if change.sign == "~":
        row |= {"field": change.field, "before": change.before, "after": change.after}
    return row
