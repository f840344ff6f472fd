"""doctor looks at the machine; these show it other machines."""

import json
import resource

from fabric.cli import checks


def test_doctor_lists_every_check_with_state_and_advice(fabricctl, socket_path):
    result = fabricctl("doctor", "-o", "json")
    rows = {row["name"]: row for row in json.loads(result.out)}
    assert result.status == (1 if any(row["state"] == "fail" for row in rows.values()) else 0)
    assert rows["daemon"] == {
        "name": "daemon",
        "state": "note",
        "found": f"none on {socket_path}",
        "advice": "start one: fabricctl up",
    }
    assert {
        "kernel",
        "memlock",
        "/dev/shm",
        "huge pages",
        "congestion control",
        "packages",
        "gpu",
        "ucx",
        "gpu links",
    } <= set(rows)
    assert all(row["advice"] for row in rows.values() if row["state"] in ("warn", "fail"))


def test_doctor_sees_a_running_daemon(fabricctl, control):
    rows = {row["name"]: row for row in json.loads(fabricctl("doctor", "-o", "json").out)}
    assert rows["daemon"]["state"] == "ok"


def test_doctor_fails_when_a_node_cannot_run(fabricctl, monkeypatch):
    monkeypatch.setattr(
        checks, "native_core", lambda: checks.Check("native core", "fail", "not built", "build it")
    )
    result = fabricctl("doctor")
    assert result.status == 1
    assert result.out.endswith("a node cannot run here: native core\n")


def test_a_socket_path_is_judged_with_its_longest_neighbour():
    assert checks.socket_path("/tmp/" + "x" * 98).state == "ok"
    assert checks.socket_path("/tmp/" + "x" * 99).state == "fail"
    assert checks.daemon("/tmp/" + "x" * 99).found == "no node can be there"


def test_missing_packages_are_named_with_the_command_that_installs_them():
    check = checks.packages(("msgspec", "no-such-package"))
    assert (check.state, check.found) == ("fail", "missing: no-such-package")
    assert check.advice == "pip install no-such-package"


def test_a_kernel_without_seals_is_a_failure(monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(checks.fcntl, "fcntl", refuse)
    check = checks.kernel()
    assert check.state == "fail"
    assert "lacks sealed memfd (Invalid argument)" in check.found


def test_limits_are_judged_by_their_soft_value(monkeypatch):
    monkeypatch.setattr(checks.resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert checks.files().state == "warn"
    assert checks.memlock().state == "note"
    monkeypatch.setattr(
        checks.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    assert checks.memlock().found == "unlimited"


def test_huge_pages_that_are_off_come_with_the_command_to_turn_them_on(tmp_path):
    file = tmp_path / "shmem_enabled"
    file.write_text("always within_size advise [never] deny force\n")
    assert checks.huge_pages(str(file)).found == "off for shared memory (never)"
    file.write_text("always within_size [advise] never deny force\n")
    assert checks.huge_pages(str(file)).state == "ok"
    assert checks.huge_pages(str(tmp_path / "none")).found == "unknown: No such file or directory"


def test_congestion_control_is_read_from_the_kernel(tmp_path):
    (tmp_path / "tcp_congestion_control").write_text("bbr\n")
    (tmp_path / "tcp_available_congestion_control").write_text("reno bbr\n")
    assert checks.congestion_control(str(tmp_path)).found == "bbr (available: reno, bbr)"


def test_a_gpu_device_without_its_library_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.ctypes.util, "find_library", lambda _: None)
    assert checks.gpu(str(tmp_path)).state == "warn"
    assert checks.gpu(str(tmp_path / "none")).state == "note"


def test_absent_shared_memory_folder_is_noted_with_the_mount_command(tmp_path):
    check = checks.shared_memory(str(tmp_path / "none"))
    assert check.state == "note"
    assert "mount -t tmpfs" in check.advice


def test_links_over_gpus_are_told_with_driver_and_nccl(fake_nccl):
    found = checks.gpu_links()
    assert found.state == "ok"
    assert found.found.startswith("2 GPUs, CUDA 12.4, NCCL 2.29.3")
    assert "; a rail is --listen cuda_ipc:HOST:PORT" in found.found


def test_no_cuda_driver_is_a_note_with_the_reason(monkeypatch):
    monkeypatch.setenv("FABRIC_CUDA_LIBRARY", "libno-such-driver.so.1")
    found = checks.gpu_links()
    assert found.state == "note" and "libno-such-driver.so.1" in found.found
