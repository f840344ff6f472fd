import sys
import types

import pytest

from fabric import limits
from fabric.errors import CapacityError, ContractError, PluginError
from fabric.worker.plugin_loader import load_entry_point, load_file, load_source, unload

HEAD = "from fabric.abc.route import route\n"
ROUTE = HEAD + "@route('first')\ndef first(header, targets):\n    return targets[0]\n"


def test_decorated_exports_are_collected_once():
    plugin = load_source("p", "p.py", ROUTE + "again = first\n")
    assert list(plugin.routes) == ["first"]
    assert (plugin.transforms, plugin.messages) == ({}, {})


def test_two_plugins_of_one_file_name_do_not_meet():
    one, two = load_source("p", "p.py", ROUTE), load_source("q", "p.py", ROUTE)
    assert one.module_name != two.module_name and one.module_name in sys.modules
    unload(one)
    assert one.module_name not in sys.modules and two.module_name in sys.modules


def test_imported_plugins_are_not_exported_again():
    source = "from fabric_routes.round_robin import RoundRobin\n"
    with pytest.raises(ContractError, match="declares nothing"):
        load_source("p", "p.py", source)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("x = 1\ndef broken(:\n", PluginError, r"p\.py:2: .*SyntaxError"),
        (
            "\n\nimport absent_package_xyz\n",
            PluginError,
            r"p\.py:3: .*install 'absent_package_xyz'",
        ),
        ("def f():\n    return 1 / 0\nf()\n", PluginError, r"p\.py:2: .*ZeroDivisionError"),
        (HEAD + "@route('r')\ndef r(h): ...\n", ContractError, r"p\.py:2: .*write it as"),
        ("x = 1\n", ContractError, "decorate a class with @fabric.transform"),
    ],
)
def test_failure_names_file_and_line(source, error, text):
    with pytest.raises(error, match=text) as caught:
        load_source("p", "p.py", source)
    assert caught.value.context.get("file") == "p.py"


def test_name_declared_twice_is_refused():
    source = ROUTE + "@route('first')\ndef second(h, t): ...\n"
    with pytest.raises(ContractError, match="declares 'first' twice: rename one"):
        load_source("p", "p.py", source)


def test_source_over_the_limit_is_refused():
    at_limit = ROUTE + "#" * (limits.PLUGIN_SOURCE_BYTES_MAX - len(ROUTE))
    assert load_source("p", "p.py", at_limit).routes
    with pytest.raises(CapacityError, match="PLUGIN_SOURCE_BYTES_MAX"):
        load_source("p", "p.py", at_limit + "#")


def test_too_many_exports_are_refused():
    declarations = (
        "for i in range({}):\n    globals()[f'r{{i}}'] = route(f'r{{i}}')(lambda h, t: t)\n"
    )
    full = load_source("p", "p.py", HEAD + declarations.format(limits.EXPORTS_PER_PLUGIN_MAX))
    assert len(full) == limits.EXPORTS_PER_PLUGIN_MAX
    with pytest.raises(CapacityError, match="EXPORTS_PER_PLUGIN_MAX"):
        load_source("p", "p.py", HEAD + declarations.format(limits.EXPORTS_PER_PLUGIN_MAX + 1))


def test_unreadable_file_is_named(tmp_path):
    with pytest.raises(PluginError, match=r"cannot read plugin .*absent\.py"):
        load_file(tmp_path / "absent.py")


def test_file_is_called_after_its_stem(tmp_path):
    file = tmp_path / "sticky.py"
    file.write_text(ROUTE)
    assert load_file(file).name == "sticky"


class Entry(types.SimpleNamespace):
    def load(self):
        return self.result()


def registered(monkeypatch, group, **entry):
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [Entry(**entry)] if group == wanted else [],
    )
    wanted = group


def test_installed_plugin_loads_by_its_name(monkeypatch):
    from fabric_routes.round_robin import RoundRobin

    registered(monkeypatch, "fabric.routes", name="rr", value="a:B", result=lambda: RoundRobin)
    assert list(load_entry_point("rr").routes) == ["round_robin"]


def test_unknown_entry_point_lists_what_is_installed(monkeypatch):
    registered(monkeypatch, "fabric.routes", name="rr", value="a:B", result=None)
    with pytest.raises(PluginError, match=r"installed: rr"):
        load_entry_point("absent")


def test_undecorated_entry_point_is_refused(monkeypatch):
    registered(monkeypatch, "fabric.routes", name="rr", value="a:B", result=lambda: print)
    with pytest.raises(ContractError, match="is not decorated"):
        load_entry_point("rr")
