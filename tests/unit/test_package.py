"""What `import fabric` costs and says; the tree of errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fabric
from fabric import errors


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


def test_every_exported_name_resolves():
    for name in fabric.__all__:
        assert getattr(fabric, name) is not None, name
    assert set(fabric.__all__) <= set(dir(fabric))


def test_import_is_cheap_and_brings_neither_torch_nor_numpy():
    out = run(
        "import sys; before = set(sys.modules); import fabric; print(sorted(set(sys.modules) - before))"
    )
    assert out.returncode == 0
    for heavy in ("numpy", "torch", "msgspec", "asyncio", "fabric._native"):
        assert f"'{heavy}'" not in out.stdout


def test_name_of_the_ssh_library_is_explained():
    with pytest.raises(AttributeError, match="SSH library"):
        fabric.Connection
    with pytest.raises(AttributeError) as info:
        fabric.no_such_name
    assert "SSH" not in str(info.value)


def test_ssh_library_in_the_same_environment_is_said_in_one_line(tmp_path):
    folder = tmp_path / "site-packages"
    (folder / "fabric-3.2.2.dist-info").mkdir(parents=True)
    out = run(
        "import os, sys; sys.path.append(os.environ['BESIDE']); import fabric",
        BESIDE=str(folder),
    )
    lines = [line for line in out.stderr.splitlines() if "SSH library fabric-3.2.2" in line]
    assert out.returncode == 0 and len(lines) == 1
    assert "SSH" not in run("import fabric").stderr


@pytest.mark.parametrize("code", sorted(set(errors.BY_CODE) - {"fabric"}))
def test_every_error_crosses_the_wire_as_itself(code):
    sent = errors.BY_CODE[code]("what happened", limit="X", value=3, nested={"a": [1, "b"]})
    got = errors.from_wire(sent.to_wire())
    assert type(got) is type(sent) and str(got) == "what happened" and got.context == sent.context


@pytest.mark.parametrize(
    "fields",
    [
        None,
        5,
        "x",
        [],
        {},
        {"code": "fabric"},
        {"code": "unheard-of", "message": 3},
        {"code": ["x"], "context": 4},
    ],
)
def test_malformed_report_becomes_a_broken_error(fields):
    assert isinstance(errors.from_wire(fields), errors.BrokenError)


def test_foreign_error_is_reported_with_its_class():
    report = errors.to_wire(KeyError("gone"))
    assert report["code"] == "internal" and report["context"] == {"error": "KeyError"}
    unfit = errors.ConfigError("x", odd=object(), text="y" * 10_000).to_wire()["context"]
    assert isinstance(unfit["odd"], str) and len(unfit["text"]) < 10_000


def test_deadline_is_also_a_timeout_error():
    assert issubclass(errors.DeadlineExceeded, TimeoutError)


def test_every_class_that_the_native_code_raises_exists():
    source = Path(__file__).parents[2] / "fabric/native/bind/errors.cpp"
    names = set(re.findall(r'return "([A-Za-z]+)";', source.read_text()))
    assert {"PathBrokenError", "CreditExhaustedError", "ClosedError", "DeadlineExceeded"} <= names
    assert all(issubclass(getattr(errors, name), errors.FabricError) for name in names)
