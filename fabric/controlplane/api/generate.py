"""Generate the `fabric.v1` code from its proto, or check that what is in the tree is current.

``python -m fabric.controlplane.api.generate [--check]``; needs grpcio-tools. The compiler runs from
the root of the repository, so that the generated modules import as ``fabric.…``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROTO = "fabric/controlplane/api/v1/control.proto"
OUTPUTS = tuple(
    f"fabric/controlplane/api/v1/control_pb2{end}" for end in (".py", ".pyi", "_grpc.py")
)


def generate(target: Path) -> None:
    """Write the generated files below a folder.

    Raises
    ------
    RuntimeError
        The compiler refused the proto; it has printed why.
    """
    import grpc_tools
    from grpc_tools import protoc

    standard = Path(grpc_tools.__file__).parent / "_proto"
    flags = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{standard}", *flags, PROTO]) != 0:
        raise RuntimeError(f"protoc refused {PROTO}")


def stale(root: Path = ROOT) -> list[str]:
    """Return the generated files in the tree that differ from what the proto gives now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [
            name
            for name in OUTPUTS
            if not (root / name).exists()
            or (root / name).read_bytes() != (Path(folder) / name).read_bytes()
        ]


def main(arguments: list[str]) -> int:
    """Run the command; exit status 1 when `--check` finds a stale file."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python -m fabric.controlplane.api.generate [--check]\n")
        return 2
    if not arguments:
        generate(ROOT)
        return 0
    different = stale()
    for name in different:
        sys.stderr.write(
            f"{name} is not what {PROTO} gives: run python -m fabric.controlplane.api.generate\n"
        )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
