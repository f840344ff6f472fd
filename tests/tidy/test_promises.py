"""The table of promises says what the tests show, and every promise but the last is shown whole."""

import importlib.util
import tomllib

import pytest

from tests.tidy.source import ROOT

WORDS = tomllib.loads((ROOT / "docs" / "promises.toml").read_text())


@pytest.fixture(scope="module")
def promises():
    spec = importlib.util.spec_from_file_location("promises", ROOT / "tools" / "promises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_and_page_are_current(promises, capsys):
    assert promises.main([]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("promise", WORDS)
def test_every_promise_is_shown_by_a_test(promises, promise):
    assert promises.collect()[promise]


@pytest.mark.parametrize("promise", [f"P{n}" for n in range(1, 10)])
def test_no_promise_but_the_last_has_a_gap(promise):
    assert "gap" not in WORDS[promise]


def test_marks_count_on_functions_classes_and_modules(promises, tmp_path, monkeypatch):
    monkeypatch.setattr(promises, "ROOT", tmp_path)
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        'pytestmark = [pytest.mark.slow, pytest.mark.promise("P9")]\n'
        '@pytest.mark.promise("P1", "P2")\n'
        "def test_one(): ...\n"
        '@pytest.mark.promise("P3")\n'
        "class TestAll:\n"
        "    def test_two(self): ...\n"
        "def helper(): ...\n"
    )
    found = promises.collect(tmp_path)
    assert {name: [test for _, test in tests] for name, tests in found.items()} == {
        "P1": ["test_one"],
        "P2": ["test_one"],
        "P3": ["TestAll::test_two"],
        "P9": ["test_one", "TestAll::test_two"],
    }
