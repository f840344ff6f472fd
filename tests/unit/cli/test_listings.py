"""What fabricctl prints about a node, compared as whole text."""

import json
import re

import pytest
import yaml

from fabric import errors
from fabric.testing.fake_control import ROWS, STATUS, TOPOLOGY

TABLES = {
    "node": """\
NAME  NUMBER  ADDRESS         STATE    INCARNATION
a          1  127.0.0.1:7400  serving           11
""",
    "module": """\
NAME     NODE  STATE   PID  RESTARTS  CLASS                           CHANNELS
prefill  a     ready  4321         0  fabric_modules.prefill:Prefill  prompts=prompts
""",
    "channel": """\
NAME  TYPE      PATTERN  DELIVERY       CLASS  ROUTE  TRANSFORMS  SENDERS  \
RECEIVERS  ACCEPTED  DELIVERED  DROPPED  FAILED  IN FLIGHT     BYTES
kv    kv.layer  stream   at_least_once  bulk   -      -                 1  \
        1        60         58        0       0          2  58.0 KiB
""",
    "plugin": """\
NAME   STATE  PID  RESTARTS  VERSION  EXPORTS          DECIDES  PATH         ERROR
upper  ready   99         1        2  transform upper  -        /p/upper.py  -
""",
}  # fmt: skip

TOPOLOGY_TABLE = """\
generation 3

NODE      NUMBER  ADDRESS         STATE    INCARNATION
a (this)       1  127.0.0.1:7400  serving           11
b              2  127.0.0.2:7400  suspect           22

FROM  TO  LINK  STATE  CONNECTIONS     SENT  RECEIVED       RTT
a     b   tcp   up               2  3.0 MiB   1.0 KiB  180.0 µs

PORT     NODE  KIND     PID  STATE
prefill  a     module  4321  ready
decode   b     module  4400  ready

channel kv: kv.layer, stream, at_least_once, bulk, transforms upper
  ROLE      PORT     NODE  STAGE
  sender    prefill  a         0
  receiver  decode   b         1
  FROM     TO      PATH  MESSAGES    BYTES  OUTSTANDING  GENERATION
  prefill  decode  tcp         60  5.0 MiB            2           3
"""

STATUS_TABLE = """\
node            a
number          1
incarnation     1763000000000000001
state           serving
version         0.1.0
pid             4000001
keeper_pid      4000000
socket          /run/a.sock
control_socket  /run/a.sock.ctl
state_dir       /state/a
log             /state/a/logs/fabricd.log
listen          127.0.0.1:7400
registry        a
generation      3
ports           3
channels        1
modules         1
plugins         1
colour          blue
uptime          1 min 16 s
"""


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_a_listing_is_a_table_of_the_named_columns(fabricctl, control, kind):
    assert fabricctl(kind, "ls") == (0, TABLES[kind], "")


@pytest.mark.parametrize("kind", sorted(TABLES))
def test_a_listing_as_json_or_yaml_is_what_the_daemon_said(fabricctl, control, kind):
    assert json.loads(fabricctl(kind, "ls", "-o", "json").out) == ROWS[kind]
    assert yaml.safe_load(fabricctl(kind, "ls", "-o", "yaml").out) == ROWS[kind]


def test_an_empty_listing_says_that_there_is_nothing(fabricctl, control, monkeypatch):
    monkeypatch.setitem(ROWS, "plugin", [])
    assert fabricctl("plugin", "ls").out == "no plugins\n"
    assert json.loads(fabricctl("plugin", "ls", "-o", "json").out) == []


def test_what_users_named_is_never_read_as_markup(fabricctl, control, monkeypatch):
    monkeypatch.setitem(ROWS, "node", [{"name": "[red]x[/red]", "number": 1}])
    assert "[red]x[/red]" in fabricctl("node", "ls").out


def test_topology_shows_nodes_links_ports_and_channels_with_their_flows(fabricctl, control):
    result = fabricctl("topology")
    assert (result.status, result.err) == (0, "")
    assert result.out.endswith(f"\n\n{TOPOLOGY_TABLE}")


def test_topology_for_machines_keeps_every_number(fabricctl, control):
    answer = json.loads(fabricctl("topology", "-o", "json").out)
    assert answer["links"] == TOPOLOGY["links"]
    assert answer["channels"][0]["flows"][0]["bytes"] == 5 << 20


def test_topology_of_a_lonely_node_says_what_is_absent(fabricctl, control, monkeypatch):
    for key in ("links", "ports", "channels"):
        monkeypatch.setitem(TOPOLOGY, key, [])
    out = fabricctl("topology").out
    assert "no links: this node stands alone" in out
    assert "nothing is attached" in out
    assert out.endswith("no channels\n")


def test_status_lists_every_field(fabricctl, control):
    assert fabricctl("status") == (0, STATUS_TABLE, "")
    assert json.loads(fabricctl("status", "-o", "json").out) == STATUS


def test_show_prints_everything_about_one_thing(fabricctl, control):
    out = fabricctl("plugin", "show", "upper").out
    assert "exports:\n  - name=upper, kind=transform\n" in out
    assert out.startswith("name      upper\nerror     -\n")
    assert json.loads(fabricctl("plugin", "show", "upper", "-o", "json").out) == ROWS["plugin"][0]


def test_show_of_an_unknown_name_says_the_nearest_and_fails(fabricctl, control):
    result = fabricctl("module", "show", "prefil")
    assert result.status == 1
    assert result.out == ""
    assert result.err == (
        "error: cannot show module 'prefil'\n"
        "  why: there is no module 'prefil'; did you mean 'prefill'?\n"
        "  do:  correct it and run the command again\n"
    )


def test_an_error_of_several_lines_stays_aligned(fabricctl, control):
    control.failure = errors.InternalError("one\ntwo")
    assert "  why: one\n       two\n  do:  this is a defect" in fabricctl("status").err


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("topology",), ("node", "ls"), ("channel", "show", "kv"), ("plugin", "logs", "upper"),
        ("module", "stop", "prefill"), ("channel", "echo", "kv"), ("channel", "send", "kv", "{}"),
    ],
)  # fmt: skip
def test_without_a_daemon_a_verb_says_how_to_start_one(fabricctl, socket_path, arguments):
    result = fabricctl(*arguments)
    assert result.status == 1
    assert f"why: no daemon answers on {socket_path}.ctl: No such file or directory" in result.err
    assert result.err.endswith("do:  start one: fabricctl up\n")


def test_the_socket_option_works_before_and_after_the_verb(
    fabricctl, control, socket_path, monkeypatch
):
    monkeypatch.delenv("FABRIC_SOCKET")
    assert fabricctl("status", "--socket", socket_path).status == 0
    assert fabricctl("--socket", socket_path, "status").status == 0


def test_an_unknown_verb_is_wrong_usage(fabricctl):
    assert fabricctl("nonsense").status == 2


def test_status_shows_when_an_event_was_as_a_time_of_day(fabricctl, control):
    control.status_answer["events"] = [{"at_s": 1_763_000_000.5, "event": "process ended"}]
    out = fabricctl("status").out
    assert re.search(r"  - at=2025-11-1\d \d\d:\d\d:\d\d, event=process ended", out), out
    assert json.loads(fabricctl("status", "-o", "json").out)["events"][0]["at_s"] == 1_763_000_000.5


@pytest.mark.parametrize("width", [100, 300])
def test_channels_fit_a_terminal_and_what_is_left_out_is_named(
    fabricctl, control, monkeypatch, width
):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    lines = re.sub(r"\x1b\[\d*m", "", fabricctl("channel", "ls").out).splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith("NAME  TYPE  ")
    assert len(lines) == 1 + len(ROWS["channel"]) + (width < 300), "no row is folded"
    assert ("(too narrow for" in lines[-1]) == (width < 300)


def test_node_of_several_rails_is_listed_with_each_and_where_it_lies(
    fabricctl, control, monkeypatch
):
    rails = [
        {"address": "10.1.0.5:7400", "interface": "eth0", "bits_per_second": 25_000_000_000},
        {"address": "10.2.0.5:7400", "interface": "", "bits_per_second": 0},
    ]
    row = {"name": "b", "number": 2, "address": "10.1.0.5:7400", "rails": rails}
    monkeypatch.setitem(ROWS, "node", [row])
    assert "10.1.0.5:7400 eth0 25 Gbit/s, 10.2.0.5:7400 " in fabricctl("node", "ls").out
    monkeypatch.setitem(ROWS, "node", [{**row, "rails": rails[:1]}])
    assert "10.1.0.5:7400  " in fabricctl("node", "ls").out
