#!/usr/bin/env python3
"""Writes nl/pb/gen and nl/pb/descriptors.binpb from the .proto files beside this script.

    python protos/generate.py           regenerate; commit the result
    python protos/generate.py --check   exit 1 if what is committed differs from what would be written

Needs the `dev` extra: protoc comes from grpcio-tools, the message classes from betterproto2-compiler. What the compiler
writes is changed in three places before it is kept:

* methods of message classes go. They convert timestamps to `datetime` (which loses nanoseconds), warn about deprecated
  fields (which a server must fill for old clients) and call betterproto2's own lenient codec; `nl.pb.codec` is ours.
* Timestamp and Duration fields stay messages instead of becoming `datetime` and `timedelta`.
* services and stubs stand on `nl.pb.service`, which needs no asyncio.
"""

from __future__ import annotations

import argparse
import ast
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
TARGET = PROTOS.parent / "nl" / "pb"
SERVICE_IMPORT = "from nl.pb import service as betterproto2_grpclib"
DATETIME_FIELD = re.compile(
    r'"datetime\.\w+ \| None" = betterproto2\.field\(\s*(\d+), betterproto2\.TYPE_MESSAGE, '
    r"unwrap=lambda: (\w+\.(?:Timestamp|Duration)), optional=True\s*\)"
)


def main() -> int:
    """Runs the generator, or compares with what is committed."""
    parser = argparse.ArgumentParser(description="Generate nl/pb/gen and nl/pb/descriptors.binpb.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the committed output is stale")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory(prefix="nl-protos-") as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if check:
            stale = [*differences(fresh / "gen", TARGET / "gen"), *different_file(fresh, TARGET, "descriptors.binpb")]
            print("\n".join(f"stale: {path}" for path in stale), file=sys.stderr, end="\n" if stale else "")
            return 1 if stale else 0
        shutil.rmtree(TARGET / "gen", ignore_errors=True)
        shutil.copytree(fresh / "gen", TARGET / "gen")
        shutil.copyfile(fresh / "descriptors.binpb", TARGET / "descriptors.binpb")
    return 0


def generate(directory: Path) -> None:
    """Writes `gen/` and `descriptors.binpb` into `directory`."""
    gen = directory / "gen"
    gen.mkdir()
    tools = Path(sys.executable).parent
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_imports"),
        f"--plugin=protoc-gen-python_betterproto2={tools / 'protoc-gen-python_betterproto2'}",
        f"--python_betterproto2_out={gen}",
        "--python_betterproto2_opt=client_generation=async,server_generation=async",
        f"--descriptor_set_out={directory / 'descriptors.binpb'}",
        *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto")),
    ]
    # The compiler plugin formats its output with the `ruff` that it finds on PATH.
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"protoc failed:\n{done.stderr}")
    for path in sorted(gen.rglob("*.py")):
        source = path.read_text()
        if source:
            path.write_text(tidied(adapted(source), ruff=tools / "ruff"))


def adapted(source: str) -> str:
    """One generated module, changed as the docstring above says."""
    without_methods = strip_message_methods(source)
    plain = DATETIME_FIELD.sub(
        r'"\2 | None" = betterproto2.field(\1, betterproto2.TYPE_MESSAGE, optional=True)', without_methods
    )
    if "datetime." in plain:
        raise SystemExit("a datetime field survived: the compiler's output has changed its shape")
    return plain.replace("from betterproto2 import grpclib as betterproto2_grpclib", SERVICE_IMPORT)


def tidied(source: str, *, ruff: Path) -> str:
    """Without the imports that nothing needs any more, and formatted. By way of stdin: ruff keeps them in a package."""
    for arguments in (("check", "--select", "F401", "--fix", "--exit-zero"), ("format", "--line-length", "120")):
        command = [ruff, *arguments, "--isolated", "--silent", "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


def strip_message_methods(source: str) -> str:
    """Removes every method of every message class: what is left are the fields."""
    lines = source.splitlines(keepends=True)
    for node in reversed(ast.parse(source).body):
        if not isinstance(node, ast.ClassDef) or "betterproto2.Message" not in map(ast.unparse, node.bases):
            continue
        for member in reversed(node.body):
            if isinstance(member, ast.FunctionDef):
                first = min([member.lineno, *(decorator.lineno for decorator in member.decorator_list)])
                assert member.end_lineno is not None
                del lines[first - 1 : member.end_lineno]
    return "".join(lines)


def differences(fresh: Path, committed: Path) -> list[Path]:
    """Files that differ, lack or are too many below `committed`; byte caches do not count."""
    names = {
        path.relative_to(root)
        for root in (fresh, committed)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return [path for name in sorted(names) for path in different_file(fresh, committed, str(name))]


def different_file(fresh: Path, committed: Path, name: str) -> list[Path]:
    """`[committed/name]` unless both sides have the same bytes under that name."""
    ours, theirs = fresh / name, committed / name
    same = ours.exists() and theirs.exists() and filecmp.cmp(ours, theirs, shallow=False)
    return [] if same else [theirs]


if __name__ == "__main__":
    sys.exit(main())
