"""A daemon killed at each step of an apply: afterwards the plan is the old one or the new one, everywhere."""

import contextlib
import threading

import pytest

from fabric import errors, steps
from tests.integration.generation_files import (
    apply,
    channel,
    outcomes,
    row,
    spec,
    write_module,
    write_plugin,
)
from tests.integration.kill_nodes import clusters, settled, wait_for

cluster = pytest.fixture(clusters)

STEPS = (
    "apply.verified",
    "apply.begun",
    "plan.node_begun",
    "plan.node_loaded",
    "plan.node_prepared",
    "apply.prepared",
    "apply.switched",
    "plan.node_chained",
    "plan.node_removed",
    "plan.node_converged",
    "apply.converged",
    "apply.committed",
    "chain.empty",
)


@pytest.fixture
def page(short_dir, monkeypatch):
    """A page on which a test arms a step in nodes that run already."""
    path = short_dir / "page"
    path.write_bytes(bytes(steps.PAGE_BYTES))
    monkeypatch.setenv("FABRIC_FAULTS", "1")
    monkeypatch.setenv("FABRIC_STEP_PAGE", str(path))
    return path


def arm(page, text):
    with page.open("r+b") as file:
        file.write(text.encode().ljust(steps.PAGE_BYTES, b"\0"))


def reached(page):
    return page.with_name(page.name + ".done").exists()


def state(node):
    """What a plan decides, as the node shows it."""
    live = row(node, "channel", "live")
    return {
        "transforms": live["transforms"] if live else None,
        "channels": sorted(r["name"] for r in node.call("ls", "channel")),
        "modules": sorted((r["name"], r["state"]) for r in node.call("ls", "module")),
        "plugins": sorted((r["name"], r["state"]) for r in node.call("ls", "plugin")),
        "chains": sorted(
            (c["channel"], c["transform"]) for r in node.call("ls", "plugin") for c in r["running"]
        ),
    }


def files(folder):
    """Two files that differ in everything a plan has, and what a node shows when each is in force."""
    old, new = (write_module(folder, name) for name in ("old", "new"))
    one, two = (write_plugin(folder, "1", name) for name in ("one", "two"))
    before = spec(
        {"live": channel(("one",)), "before": channel()},
        (one,),
        {"old": f'{{class: "{old}:Worker"}}'},
    )
    after = spec(
        {"live": channel(("two",)), "after": channel()},
        (two,),
        {"new": f'{{class: "{new}:Worker"}}'},
    )

    def shown(module, transform, other):
        return {
            "transforms": [transform],
            "channels": sorted(("live", other)),
            "modules": [(module, "ready")],
            "plugins": [(transform, "ready")],
            "chains": [("live", transform)],
        }

    return before, after, shown("old", "one", "before"), shown("new", "two", "after")


@pytest.mark.sweep
@pytest.mark.promise("P7")
@pytest.mark.deadline(120)
@pytest.mark.parametrize("step", STEPS)
def test_daemon_killed_in_the_middle_leaves_the_old_plan_or_the_new_one(
    cluster, short_dir, page, step
):
    before, after, old, new = files(short_dir)
    node = cluster.node()
    apply(node, before)
    out = cluster.worker(
        node, "produce", "out", channel="live", count=300, interval_s=0.01, declared=True
    )
    out.wait_for("sent", 10)
    pid = node.daemon_pid
    arm(page, f"{step}:kill")

    def try_it():
        with contextlib.suppress(errors.FabricError):
            apply(node, after)

    asking = threading.Thread(target=try_it)
    asking.start()
    wait_for(f"the step {step}", lambda: reached(page), 30.0)
    asking.join(40)

    def is_back():
        with contextlib.suppress(errors.FabricError):
            return node.daemon_pid != pid
        return False

    wait_for("the daemon's successor", is_back, 30.0)
    wanted = {"committed": new, "rolled back": old}

    def is_one_of_them():
        with contextlib.suppress(errors.FabricError):
            newest = outcomes(node)[0]
            found = state(node)
            expected = old if newest[0] == 1 else wanted.get(newest[1])
            return found == expected
        return False

    try:
        wait_for("the old plan or the new one", is_one_of_them, 30.0)
    except AssertionError:
        log = (node.folder / "state" / "logs" / "fabricd.log").read_text()
        raise AssertionError(f"{step}: {outcomes(node)} {state(node)}\n{log[-3000:]}") from None
    if step == "apply.committed":
        assert outcomes(node)[0] == (2, "committed"), "what was answered stays"
    out.finish()
    assert out.reports("flushed")[0]["failures"] == 0
    ends = settled(node, "live")
    log = (node.folder / "state" / "logs" / "fabricd.log").read_text()
    assert ends["failed"] == ends["dropped"] == 0, f"{ends}\n{outcomes(node)}\n{log[-6000:]}"
    assert apply(node, after)["generation"] in (2, 3), "the same file can be applied now"
    wait_for("the new plan", lambda: state(node) == new, 30.0)
