"""What fabricd refuses before it touches anything, and that each refusal says what to do."""

from __future__ import annotations

import os
import socket

import pytest

from fabric import limits
from fabric.controlplane import listening, options
from fabric.controlplane import main as main_module
from fabric.controlplane.main import check_exposure, main
from fabric.errors import BusyError, ConfigError
from fabric.links.addresses import LocalAddress
from fabric.paths import choice

pytestmark = pytest.mark.promise("P10")


def test_socket_path_at_the_limit_is_taken_and_one_byte_more_is_refused(short_dir):
    room = limits.SOCKET_PATH_BYTES_MAX - len(str(short_dir)) - 1 - len(".ctl")
    taken = options.listen_unix(str(short_dir / ("s" * room)))
    taken.close()
    with pytest.raises(ConfigError, match="choose a shorter one with --socket"):
        options.listen_unix(str(short_dir / ("s" * (room + 1))))


def test_attach_socket_is_only_for_its_owner(short_dir):
    path = str(short_dir / "deep" / "s")
    with options.listen_unix(path):
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert os.stat(short_dir / "deep").st_mode & 0o077 == 0


def test_socket_of_a_live_daemon_is_refused_and_that_of_a_dead_one_replaced(short_dir):
    path = str(short_dir / "s")
    first = options.listen_unix(path)
    with pytest.raises(BusyError, match="a live daemon serves"):
        options.listen_unix(path)
    first.close()
    options.listen_unix(path).close()


def test_file_at_the_socket_path_is_not_removed(short_dir):
    path = short_dir / "s"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="not a socket"):
        options.listen_unix(str(path))
    assert path.read_text() == "mine"


def test_state_directory_in_use_is_refused_naming_its_holder(short_dir):
    lock = options.prepare_state(short_dir / "state")
    with pytest.raises(BusyError, match=f"in use by fabricd {os.getpid()}"):
        options.prepare_state(short_dir / "state")
    os.close(lock)
    os.close(options.prepare_state(short_dir / "state"))


def test_state_directory_that_is_a_file_is_refused(short_dir):
    (short_dir / "state").write_text("")
    with pytest.raises(ConfigError, match="is not a directory; choose another with --state"):
        options.prepare_state(short_dir / "state")


@pytest.mark.skipif(not os.path.isdir("/proc/sys"), reason="needs /proc")
def test_state_directory_that_cannot_be_written_is_refused():
    with pytest.raises(ConfigError, match="the state directory /proc/sys/fabricd"):
        options.prepare_state(options.Path("/proc/sys/fabricd"))


def test_taken_address_is_refused(short_dir):
    with listening.listen_tcp(("127.0.0.1", 0)) as first:
        with pytest.raises(BusyError, match="is taken; choose another --listen"):
            listening.listen_tcp(("127.0.0.1", first.getsockname()[1]))


def test_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match="choose another --listen"):
        listening.listen_tcp(("192.0.2.1", 0))


@pytest.mark.parametrize("text", ["nowhere", "127.0.0.1:", ":7400", "127.0.0.1:99999"])
def test_malformed_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError, match=r"write HOST:PORT"):
        options.parse(["--listen", text])


def test_listening_beyond_loopback_needs_a_secret_file(short_dir):
    with pytest.raises(ConfigError, match="give --secret-file"):
        check_exposure(options.parse(["--listen", "0.0.0.0:7400"]))
    secret = short_dir / "secret"
    secret.write_text("long enough to be one")
    secret.chmod(0o600)
    check_exposure(options.parse(["--listen", "0.0.0.0:7400", "--secret-file", str(secret)]))


def test_secret_that_others_can_read_or_that_is_short_is_refused(short_dir):
    secret = short_dir / "secret"
    secret.write_text("long enough to be one")
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        options.read_secret(secret)
    secret.chmod(0o600)
    assert options.read_secret(secret) == b"long enough to be one"
    secret.write_text("x" * (options.SECRET_BYTES_MIN - 1))
    with pytest.raises(ConfigError, match="at least"):
        options.read_secret(secret)


def test_nodes_of_one_user_share_a_secret_that_only_they_can_read(short_dir, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    first = options.read_secret(None)
    assert first == options.read_secret(None) and len(first) >= 32
    assert os.stat(short_dir / "fabricd" / "secret").st_mode & 0o777 == 0o600


def test_refusal_is_one_line_on_stderr_and_status_2(short_dir, capsys):
    path = str(short_dir / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen(1)
        assert main(["--socket", path, "--state", str(short_dir / "state")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fabricd: a live daemon serves on") and said.count("\n") == 1


def test_links_that_are_unknown_or_do_not_work_here_are_refused_with_what_does(monkeypatch):
    monkeypatch.setattr(choice, "missing", lambda link: "not in this build")
    with pytest.raises(
        ConfigError, match="there is no link 'pigeon' between nodes; use ucx or tcp"
    ):
        options.parse(["--links", "pigeon"])
    with pytest.raises(ConfigError, match="add tcp to the list"):
        options.parse(["--links", "ucx"])
    assert options.parse(["--links", "ucx, tcp"]).links == ("ucx", "tcp")


def test_payloads_have_checksums_unless_the_operator_says_otherwise():
    assert options.parse([]).checksums
    assert not options.parse(["--checksums", "off"]).checksums


def test_congestion_control_of_links_is_chosen_unless_the_operator_says_otherwise():
    assert options.parse([]).tcp_congestion == "auto"
    assert options.parse(["--tcp-congestion", "system"]).tcp_congestion == "system"
    with pytest.raises(ConfigError, match="none-such"):
        options.parse(["--tcp-congestion", "none-such"])


@pytest.mark.promise("P10")
@pytest.mark.parametrize("where", ["0.0.0.0:9464", "192.0.2.7:9464", "example.org:9464", "[::]:1"])
def test_metrics_are_not_served_beyond_loopback(where):
    with pytest.raises(ConfigError, match="on loopback only"):
        options.parse(["--metrics", where])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("off", None),
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_metrics_are_where_the_option_says_and_can_be_off(text, address):
    assert options.parse(["--metrics", text]).metrics == address
    assert options.parse([]).metrics == ("127.0.0.1", 0)


@pytest.mark.parametrize("text", ["9464", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:70000", ""])
def test_an_address_of_metrics_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="--metrics"):
        options.parse(["--metrics", text])


def test_each_listen_is_a_rail_and_further_ones_take_the_first_ones_port():
    given = ["--listen", "10.0.0.1:7400", "--listen", "10.1.0.1", "--listen", "10.2.0.1:7500"]
    found = options.parse(given)
    assert found.listen == ("10.0.0.1", 7400)
    assert found.listens == (("10.0.0.1", 7400), ("10.1.0.1", 7400), ("10.2.0.1", 7500))
    assert options.parse([]).listens == ()
    assert listening.addresses_of(["[fd00::1]:7400", "[fd00::2]"])[1] == ("fd00::2", 7400)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["10.0.0.1"], "write HOST:PORT"),
        (["10.0.0.1:7400", "10.1.0.1:port"], "write HOST:PORT"),
        (["10.0.0.1:7400", ""], "write HOST:PORT"),
        (["10.0.0.1:7400", "10.0.0.1"], "is given twice"),
        (["10.0.0.1:7400", "ucx:[fd00::1]:7401"], "has an IPv4 address"),
        ([f"10.0.0.{n}:7400" for n in range(limits.RAILS_PER_PEER_MAX + 1)], "RAILS_PER_PEER_MAX"),
    ],
    ids=["first without a port", "port is a word", "empty", "twice", "ucx over IPv6", "too many"],
)
def test_rails_that_cannot_be_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        listening.addresses_of(given)


def test_rail_of_ucx_names_its_transports_before_its_address():
    given = ["127.0.0.1:7400", "ucx:127.0.0.1:7401", "ucx+rc,ud:10.1.0.1:7402", "tcp:10.0.0.1"]
    assert listening.links_of(given) == ("tcp", "ucx", "ucx+rc,ud", "tcp")
    assert listening.addresses_of(given)[1:3] == (("127.0.0.1", 7401), ("10.1.0.1", 7402))
    found = options.parse([word for each in given[:2] for word in ("--listen", each)])
    assert found.listen_links == ("tcp", "ucx")


@pytest.mark.parametrize("text", ["ucx+:127.0.0.1:1", "ucx+a b:127.0.0.1:1", "ucx+a\n:h:1"])
def test_transports_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="names of transports"):
        options.parse(["--listen", "127.0.0.1:0", "--listen", text])


def test_rails_of_one_address_have_ports_of_their_own():
    made = listening.listen_on([("127.0.0.1", 0), ("127.0.0.1", 0)], ["tcp", "ucx+shm"])
    ports = {each.sock.getsockname()[1] for each in made}
    for each in made:
        each.sock.close()
    assert len(ports) == 2
    assert [each.link for each in made] == ["tcp", "ucx+shm"]


def test_rail_whose_link_is_not_here_is_left_out_and_told(monkeypatch, capsys):
    monkeypatch.setattr(main_module, "missing", lambda link: "" if link == "tcp" else "no UCX")
    given = ["--listen", "127.0.0.1:0", "--listen", "ucx:127.0.0.1:0"]
    assert main_module.usable_listens(options.parse(given)) == ([("127.0.0.1", 0)], ["tcp"])
    assert "ucx:127.0.0.1:0 is left out: no UCX" in capsys.readouterr().err


def test_rails_share_the_free_port_that_the_first_one_got():
    made = listening.listen_on([("127.0.0.1", 0), ("127.0.0.2", 0)])
    names = [each.sock.getsockname() for each in made]
    for each in made:
        each.sock.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert names[0][1] == names[1][1] != 0


def test_everywhere_is_each_usable_interface_and_only_as_many_as_there_may_be(monkeypatch, capsys):
    many = tuple(
        LocalAddress("lo", f"127.0.1.{n}", 8) for n in range(1, limits.RAILS_PER_PEER_MAX + 2)
    )
    monkeypatch.setattr(listening.addresses, "local_addresses", lambda: many)
    made = listening.listen_on([("0.0.0.0", 0)])
    hosts = [each.sock.getsockname()[0] for each in made]
    for each in made:
        each.sock.close()
    assert hosts == [a.address for a in many[: limits.RAILS_PER_PEER_MAX]]
    assert f"{many[-1].address} is not listened on" in capsys.readouterr().err


def test_rail_that_cannot_be_listened_on_leaves_none_open():
    with pytest.raises(ConfigError, match="cannot listen on 198"):
        listening.listen_on([("127.0.0.1", 0), ("198.51.100.7", 0)])


@pytest.mark.parametrize("listens", [["0.0.0.0:0"], ["127.0.0.1:0", "10.0.0.1"]])
def test_any_rail_beyond_loopback_needs_a_secret(listens, short_dir):
    given = [word for each in listens for word in ("--listen", each)]
    with pytest.raises(ConfigError, match="give --secret-file"):
        check_exposure(options.parse(given))
