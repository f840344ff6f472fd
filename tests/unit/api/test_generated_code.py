"""The checked-in gRPC code is what the proto gives."""

import pytest

generate = pytest.importorskip("fabric.controlplane.api.generate")
pytest.importorskip("grpc_tools", reason="grpcio-tools is a development dependency")


def test_generated_code_in_the_tree_is_current():
    assert generate.stale() == []


def test_an_edited_generated_file_is_noticed(tmp_path):
    for name in generate.OUTPUTS:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((generate.ROOT / name).read_bytes())
    edited = tmp_path / generate.OUTPUTS[0]
    edited.write_text(edited.read_text() + "# by hand\n")
    assert generate.stale(tmp_path) == [generate.OUTPUTS[0]]
