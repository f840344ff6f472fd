"""`fabricctl simulate`: rails and traces without a network, by the engine's own scheduler. No node is asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from fabric import limits, units
from fabric.cli.failure import Failure, failing
from fabric.cli.options import Output
from fabric.cli.output import Column, Format, emit, pairs, table

if TYPE_CHECKING:
    from fabric.paths.replay import Cluster, Load, Replayed
    from fabric.paths.simulation import Outcome

simulate_app = typer.Typer(
    help="Simulate rails and traces with the engine's scheduler; no node is asked.",
    no_args_is_help=True,
)

Seed = Annotated[int, typer.Option("--seed", min=0, help="Everything drawn is drawn from it.")]


@simulate_app.command("seeds")
def seeds(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Schedules.")] = 1000,
    first: Annotated[int, typer.Option("--first", min=0, help="The first seed.")] = 1,
    show: Annotated[
        bool, typer.Option("--show", help="Print the first seed's schedule, run nothing.")
    ] = False,
) -> None:
    """Run schedules of rates, losses, failures and returns, one drawn from each seed.

    Exit status 1 when something did not hold; each such seed is printed with what to do about it.
    """
    from fabric.paths import simulation

    if show:
        sys.stdout.write(simulation.drawn(first))
        return
    failed = 0
    for done, broken in simulation.run_seeds(first, count):
        for failure in broken:
            failed += 1
            sys.stdout.write(f"seed {failure.seed}: at {failure.at_s:.6f} s: {failure.violation}\n")
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done} of {count}")
    if sys.stderr.isatty():
        sys.stderr.write("\r")
    sys.stdout.write(f"{count} schedules from seed {first} on, {failed} failed\n")
    if failed:
        raise Failure(
            f"{failed} of {count} schedules did not hold",
            "see the seeds above",
            "fabricctl simulate seeds --show --first SEED > tests/simulation/plans/NAME.plan",
        )


@simulate_app.command("plan")
def plan(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The schedule.")],
    bucket: Annotated[
        str, typer.Option("--bucket", help="Goodput is given for each of these.")
    ] = "500ms",
    output: Output = Format.table,
) -> None:
    """Run one schedule: goodput over time, what was sent again, the rails at the end."""
    from fabric.paths import simulation

    outcome = None
    with failing(f"cannot simulate {file}"):
        outcome = simulation.run(_text(file), _seconds(bucket))
    emit(_outcome(outcome), output, lambda: _outcome_text(outcome))
    if outcome.violation:
        raise Failure(
            f"{file} does not hold",
            f"at {outcome.at_s:.6f} s: {outcome.violation}",
            "keep it in tests/simulation/plans and find the cause",
        )


@simulate_app.command("trace")
def trace(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Mooncake JSON lines, Azure CSV, or your own.")
    ],
    topology: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
        typer.Option("--topology", help="A node: NCCL or hwloc XML; left out: 8 × 400 Gbit/s."),
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=2, max=limits.SIMULATION_NODES_MAX, help="Half send.")
    ] = 1000,
    slow: Annotated[int, typer.Option("--slow-one-in", min=0, help="Rails; 0: none.")] = 50,
    factor: Annotated[float, typer.Option("--slow-factor", help="Share of the rate left.")] = 0.1,
    share: Annotated[
        float, typer.Option("--load", help="Offered, of what can be carried; 0: times as they are.")
    ] = 0.3,
    per_token: Annotated[str, typer.Option("--bytes-per-token", help="Of KV cache.")] = "128KiB",
    flows: Annotated[
        int, typer.Option("--flows", min=1, max=1024, help="Of ECMP, a transfer.")
    ] = 8,
    requests: Annotated[
        int, typer.Option("--requests", min=1, max=limits.SIMULATION_REQUESTS_MAX, help="At most.")
    ] = limits.SIMULATION_REQUESTS_MAX,
    seed: Seed = 1,
    output: Output = Format.table,
) -> None:
    """Replay a trace as KV transfers over many nodes: ours, static hashing (ECMP) and round-robin striping."""
    from fabric.paths import replay
    from fabric.paths import trace as traces

    _check_shares(factor, share)
    with failing(f"cannot replay {file}"):
        rows = traces.read(file, requests)
        cluster = replay.Cluster(nodes, _rates(topology), slow, factor)
        load = replay.Load(_size(per_token), share, flows)
        found = [replay.replay(rows, cluster, load, seed, policy) for policy in replay.POLICIES]
    answer = _replayed(found, cluster, load, seed)
    emit(answer, output, lambda: _replayed_text(answer))


def _check_shares(factor: float, share: float) -> None:
    if not 0 < factor <= 1:
        raise Failure(
            f"--slow-factor {factor}", "a share of a rate is above 0, at most 1", "give 0.1"
        )
    if not 0 <= share <= 1:
        raise Failure(f"--load {share}", "a share of a rate is 0 to 1", "give 0.3")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"cannot read {file}", str(error), "give a file of text") from error


def _seconds(text: str) -> float:
    try:
        return units.parse_seconds(text)
    except ValueError as error:
        raise Failure(f"--bucket {text}", str(error), "give 500ms") from error


def _size(text: str) -> int:
    try:
        return units.parse_bytes(text)
    except ValueError as error:
        raise Failure(f"--bytes-per-token {text}", str(error), "give 128KiB") from error


def _rates(topology: Path | None) -> tuple[float, ...]:
    from fabric.paths import replay
    from fabric.paths.discovery import load

    return replay.DGX_RAILS if topology is None else replay.rails_of(load.load(topology))


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "violation": outcome.violation,
        "at_s": outcome.at_s,
        "delivered_bytes": outcome.delivered,
        "posted_bytes": outcome.posted,
        "resent_bytes": outcome.resent,
        "late_bytes": outcome.scratch,
        "corrupt_chunks": outcome.corrupt,
        "gap_ms": outcome.gap_s * 1e3,
        "bucket_s": outcome.bucket_s,
        "mb_per_s": [round(rate / 1e6, 1) for rate in outcome.rates],
        "rails": [dict(rail) for rail in outcome.rails],
        "digest": f"{outcome.digest:016x}",
    }


def _outcome_text(outcome: Outcome) -> str:
    values = _outcome(outcome)
    rails = values.pop("rails")
    columns = [
        Column("rail", "rail"),
        Column("state", "state"),
        Column("MB/s", lambda row: round(row["rate"] / 1e6, 1), True),
        Column("base us", lambda row: round(row["base_ns"] / 1e3, 1), True),
        Column("delivered", "delivered", True),
        Column("resent", "resent", True),
        Column("failures", "failures", True),
        Column("left out", "left_out"),
    ]
    rows = [{"rail": number, **rail} for number, rail in enumerate(rails)]
    return pairs(values) + "\n\n" + table(columns, rows, "no rail")


def _replayed(found: list[Replayed], cluster: Cluster, load: Load, seed: int) -> dict[str, Any]:
    from fabric.paths.replay import slow_rails

    p99 = {run.policy: run.percentile(0.99) for run in found}
    return {
        "seed": seed,
        "nodes": cluster.nodes,
        "rails_gbit_per_s": [round(rate * 8 / 1e9, 3) for rate in cluster.rates],
        "slow_rails": len(slow_rails(cluster, seed)),
        "slow_factor": cluster.slow_factor,
        "load": load.share,
        "transfers": len(found[0].took_s),
        "bytes": found[0].bytes,
        "p99_of_hashed": p99["adaptive"] / p99["hashed"],
        "p99_of_striped": p99["adaptive"] / p99["striped"],
        "policies": [_policy(run) for run in found],
    }


def _policy(run: Replayed) -> dict[str, Any]:
    return {
        "policy": run.policy,
        "p50_ms": run.percentile(0.5) * 1e3,
        "p90_ms": run.percentile(0.9) * 1e3,
        "p99_ms": run.percentile(0.99) * 1e3,
        "max_ms": run.took_s[-1] * 1e3,
        "resent_percent": 100 * run.resent / run.bytes,
        "chunks": run.chunks,
        "digest": f"{run.digest:016x}",
    }


def _replayed_text(answer: Mapping[str, Any]) -> str:
    values = {key: value for key, value in answer.items() if key != "policies"}
    columns = [
        Column("policy", "policy"),
        *(_milliseconds(name) for name in ("p50", "p90", "p99", "max")),
        Column("resent %", lambda row: round(row["resent_percent"], 3), True),
        Column("chunks", "chunks", True),
        Column("digest", "digest"),
    ]
    return pairs(values) + "\n\n" + table(columns, answer["policies"], "no policy")


def _milliseconds(name: str) -> Column:
    return Column(f"{name} ms", lambda row: round(row[f"{name}_ms"], 3), True)
