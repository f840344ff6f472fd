"""Joins on a real node: fused once over kills of their host, late and partial as declared, seen by fabricctl."""

import collections
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import fabric
from fabric import errors, steps
from tests.integration.join_parts import Pair, Picture, Prompt
from tests.integration.kill_nodes import Cluster, balanced, wait_for

PARTS = pathlib.Path(__file__).with_name("join_parts.py")
REQUESTS = 40
YAML = """
version: 1
channels:
  pictures: {{type: join.picture, delivery: at_least_once, class: embedding}}
  prompts: {{type: join.prompt, delivery: at_least_once}}
  pairs: {{type: join.pair, delivery: at_least_once}}
  short.pictures: {{type: join.picture, delivery: at_least_once}}
  short.prompts: {{type: join.prompt, delivery: at_least_once}}
  short.pairs: {{type: join.pair, delivery: at_least_once}}
joins:
  long:
    use: "{file}:Pairs"
    inputs: {{picture: pictures, prompt: prompts}}
    output: pairs
    restart: {{backoff_s: [0.05, 0.1]}}
  short:
    use: "{file}:Pairs"
    inputs: {{picture: short.pictures, prompt: short.prompts}}
    output: short.pairs
    window: 100ms
    late: partial
    partial: [picture]
    config: {{factor: 2}}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page on which a test arms a step in processes that run already."""
    path = tmp_path_factory.mktemp("steps") / "page"
    path.write_bytes(bytes(steps.PAGE_BYTES))
    return path


@pytest.fixture(scope="module")
def node(tmp_path_factory, page):
    armed = {"FABRIC_FAULTS": "1", "FABRIC_STEP_PAGE": str(page)}
    folder = pathlib.Path(tmp_path_factory.mktemp("j", numbered=True))
    short = pathlib.Path("/tmp") / f"fab-joins-{os.getpid()}"
    short.mkdir()
    os.environ |= armed
    cluster = Cluster(short)
    try:
        made = cluster.node("a")
        made.call("apply", YAML.format(file=PARTS), search=[str(folder)])
        yield made
    finally:
        for name in armed:
            del os.environ[name]
        cluster.close()
        subprocess.run(["rm", "-rf", str(short)], check=True)


@pytest.fixture(scope="module")
def port(node):
    with fabric.attach("test", node.socket) as made:
        yield made


@pytest.fixture(scope="module")
def ends(port):
    """Both inputs and the output of the long join; the same for all tests, so that no consumer leaves amid one."""
    pictures, prompts = port.sender("pictures", Picture), port.sender("prompts", Prompt)
    return pictures, prompts, port.receiver("pairs", Pair)


def picture(request, value=1.0):
    return Picture(request, np.full((2, 3), value, np.float32))


def arm(page, text):
    page.with_name(page.name + ".done").unlink(missing_ok=True)
    with page.open("r+b") as file:
        file.write(text.encode().ljust(steps.PAGE_BYTES, b"\0"))


def host(node, name):
    return next(r for r in node.call("ls", "plugin") if r["name"] == name)


def collect(receiver, count):
    """Receive outputs until each of `count` requests has one, and what else comes within a moment."""
    found = collections.Counter()
    for _ in range(count):
        message = receiver.receive(timeout=20)
        assert message is not None, f"{len(found)} of {count} requests were put out within 20 s"
        with message:
            found[message.header.key, message.request] += 1
            message.ack()
    return found


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "step", ["join.fused", "join.noted", "join.accepted", "join.remembered", "join.acknowledged"]
)
def test_a_host_killed_at_a_step_puts_every_request_out_once(node, ends, page, step):
    """The inputs come again, flagged; what had been accepted is not put out again, not even by the parts left over."""
    pictures, prompts, outputs = ends
    before = prompts.stats().get("delivered", 0), pictures.stats().get("delivered", 0)
    restarts = host(node, "long")["restarts"]
    arm(page, f"{step}:kill:17")
    names = [f"{step}-{n}" for n in range(REQUESTS)]
    for n, name in enumerate(names):  # half of them the other way round
        first, second = (pictures, prompts) if n % 2 else (prompts, pictures)
        for sender in (first, second):
            part = picture(name) if sender is pictures else Prompt(name, "text")
            sender.send(part, key=name, deadline=20)
    found = collect(outputs, REQUESTS)
    pictures.flush(20), prompts.flush(20)
    wait_for("the host's restart", lambda: host(node, "long")["restarts"] > restarts)
    assert page.with_name(page.name + ".done").exists(), "the step was not reached"
    assert found == {(name.encode(), name): 1 for name in names}
    assert outputs.receive(timeout=0) is None
    after = prompts.stats()["delivered"], pictures.stats()["delivered"]
    assert after == (before[0] + REQUESTS, before[1] + REQUESTS)
    balanced(node)


def test_requests_end_fused_partial_late_and_dropped_as_declared(node, port):
    outputs = port.receiver("short.pairs", Pair)
    pictures, prompts = port.sender("short.pictures", Picture), port.sender("short.prompts", Prompt)
    for name, text in (("whole", "x"), ("raising", "raise"), ("refused", "drop"), ("partial", "x")):
        prompts.send(Prompt(name, text), deadline=20)
        if name != "partial":
            pictures.send(picture(name), deadline=20)
    pictures.send(picture("alone"), deadline=20)
    found = {}
    for _ in range(2):
        with outputs.receive(timeout=20) as pair:
            found[pair.request] = pair.total, pair.missing
            pair.ack()
    assert found == {"whole": (12.0, []), "partial": (0.0, ["picture"])}
    pictures.send(picture("partial"), deadline=20)
    prompts.flush(20), pictures.flush(20)
    counts = host(node, "short")["join"]
    said = {name: n for name, n in counts.items() if n}
    assert said == {
        "fused": 1,
        "partial": 1,
        "late": 1,
        "dropped_incomplete": 1,
        "dropped_error": 1,
        "dropped_refused": 1,
    }
    assert prompts.stats()["failed(transform_error)"] == 1
    assert pictures.stats()["dropped(transform_drop)"] == 3  # refused, alone, late
    assert node.call("metrics").count('join="short"') == 13
    balanced(node)


def test_a_join_that_stops_hands_back_what_waits(node, ends):
    pictures, prompts, outputs = ends
    prompts.send(Prompt("waits", "x"), deadline=20)
    wait_for("the part to be held", lambda: host(node, "long")["join"]["waiting"] == 1)
    node.call("module_scale", "long", 0)
    node.call("module_scale", "long", 1)
    pictures.send(picture("waits"), deadline=20)
    assert collect(outputs, 1) == {(b"waits", "waits"): 1}
    prompts.flush(20)


def test_a_second_process_of_a_join_is_refused_and_the_first_goes_on(node, ends):
    pictures, prompts, outputs = ends
    node.call("module_scale", "long", 2)

    def is_told():
        return "a join is one process" in "".join(node.call("module_logs", "long-1"))

    wait_for("the refusal in its log", is_told)
    node.call("module_scale", "long", 1)
    pictures.send(picture("first"), deadline=20), prompts.send(Prompt("first", "x"), deadline=20)
    assert collect(outputs, 1) == {(b"first", "first"): 1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("output: pairs", "output: prompts"), "carries join.prompt"),
        (("picture: pictures", "pictur: pictures"), "no channel field 'pictur'; did you mean"),
        (("file}:Pairs", "file}:Prompt"), "nor declared with @fabric.join"),
        (('use: "{file}:Pairs"', "use: paris"), "no installed join is called 'paris'"),
        (("late: partial", "late: never"), "expected one of wait, partial, drop"),
    ],
    ids=["type", "input", "no join", "not installed", "policy"],
)
def test_a_join_that_cannot_be_is_refused_by_the_plan(node, change, said):
    text = YAML.replace(*change).format(file=PARTS)
    with pytest.raises(errors.ConfigError) as refused:
        node.call("apply", text)
    assert said in str(refused.value)


def test_a_cycle_through_a_join_is_refused(node):
    """One join puts out what another takes in, and the other way round: each waits for the other's room."""
    text = YAML.format(file=PARTS).replace(PARTS.name, "join_cycle.py")
    text = text.replace("type: join.pair", "type: join.picture")
    text = text.replace("picture: pictures,", "picture: short.pairs,")
    text = text.replace("picture: short.pictures,", "picture: pairs,")
    with pytest.raises(errors.ConfigError, match=r"a cycle of credit.*long\.output.*short\.output"):
        node.call("apply", text)


CACHE = """
import sys, fabric
with fabric.attach("other", sys.argv[1]) as port:
    print(port.cache.get(bytes.fromhex(sys.argv[2])).sum())
"""


def test_the_cache_serves_other_processes_of_the_user_and_outlives_them(node, port):
    key = fabric.content_key("clip-1", np.arange(6, dtype=np.float32))
    assert port.cache.get(key) is None
    assert port.cache.put(key, np.full((4, 5), 2, np.float32))
    command = [sys.executable, "-c", CACHE, node.socket, key.hex()]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"40.0\n"
    node.kill_daemon()
    with fabric.attach("later", node.socket) as later:
        assert (later.cache.get(key) == 2).all()
        stat = fabricctl(node, "cache", "stat", "-o", "json")
        assert '"hits": 2' in stat and '"entries": 1' in stat
        assert fabricctl(node, "cache", "clear") == "1 entries forgotten\n"
        assert later.cache.get(key) is None


def fabricctl(node, *arguments):
    command = [sys.executable, "-m", "fabric.cli.main", *arguments, "--socket", node.socket]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_listing_names_the_join_and_what_it_counted(node, ends):
    pictures, prompts, outputs = ends
    pictures.send(picture("listed"), deadline=20), prompts.send(Prompt("listed", "x"), deadline=20)
    collect(outputs, 1)
    listed = fabricctl(node, "plugin", "ls")
    assert "join long" in listed and "fused" in listed
