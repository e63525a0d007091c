"""The build hook: what a wheel and an editable install hold, with a compiler and without.

Builds as pip does, through hatchling in a process of its own and without a network. A project of one small module stands
for the real one, since compiling that takes long: with SQLWALL_TEST_COMPILED=1 it is compiled, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import pytest

PROJECT = Path(__file__).parents[1]
pytest.importorskip("hatchling", reason="hatchling is not installed: it is in the extra `dev`")

SUFFIX = EXTENSION_SUFFIXES[0]
NO_COMPILER = {"CC": "/nonexistent/cc"}
FORBIDDEN, ASKED = {"SQLWALL_COMPILE": "0"}, {"SQLWALL_COMPILE": "1"}
needs_mypyc = pytest.mark.skipif(
    shutil.which("cc") is None or find_spec("mypyc") is None or find_spec("setuptools") is None,
    reason="compiling needs cc, mypyc and setuptools",
)

PYPROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "small"
version = "1"
requires-python = ">=3.11"
[tool.hatch.build]
dev-mode-dirs = ["."]  # else hatchling wants one more package, which pip gets for it
[tool.hatch.build.targets.wheel]
packages = ["small"]
[tool.hatch.build.targets.wheel.hooks.custom]
modules = ["small/[!_]*.py"]
"""
MODULE = """
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self, more: int) -> int:
        self.count += more
        return self.count
"""
#: Calls one of the functions that pip calls (PEP 517 and 660) and prints what it returns as the last line.
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(*sys.argv[2:]))"
#: The same where nothing but what hatchling needs can be imported.
BARE_BUILD = "import sys; sys.path.insert(0, sys.argv.pop(1)); " + BUILD


@dataclass(frozen=True, slots=True)
class Built:
    """How a build ended."""

    status: int
    output: str
    wheel: Path

    def names(self) -> set[str]:
        """The files in the wheel, without its metadata."""
        with ZipFile(self.wheel) as archive:
            return {name for name in archive.namelist() if ".dist-info/" not in name}


@dataclass(frozen=True, slots=True)
class Source:
    """A project's folder, and where its wheels go."""

    folder: Path
    wheels: Path

    def call(
        self,
        function: str,
        *arguments: str,
        start: tuple[str, ...] = ("-c", BUILD),
        environment: Mapping[str, str] | None = None,
    ) -> Built:
        """Run one function of the build backend; `environment` is added to ours."""
        known = {name: value for name, value in os.environ.items() if name not in ("SQLWALL_COMPILE", "CC")}
        command = [sys.executable, *start, function, *arguments]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=known | dict(environment or {}),
            capture_output=True,
            text=True,
            check=False,
        )
        last = done.stdout.splitlines()[-1] if done.stdout else ""
        return Built(done.returncode, done.stdout + done.stderr, self.wheels / last)

    def build(self, environment: Mapping[str, str] | None = None) -> Built:
        """A wheel."""
        return self.call("build_wheel", str(self.wheels), environment=environment)

    def build_editable(self, environment: Mapping[str, str] | None = None) -> Built:
        """What `pip install -e` installs; it may also put files beside the sources."""
        return self.call("build_editable", str(self.wheels), environment=environment)

    def files(self) -> set[str]:
        """Everything in the folder, scratch of a build included; importing the hook leaves a __pycache__."""
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in found if "__pycache__" not in path.parts}


@pytest.fixture
def small(tmp_path: Path) -> Source:
    """A project of one module, built by our hook."""
    folder, wheels = tmp_path / "project", tmp_path / "wheels"
    (folder / "small").mkdir(parents=True)
    wheels.mkdir()
    for name in ("hatch_build.py", ".gitignore"):
        shutil.copy(PROJECT / name, folder)
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "small" / "__init__.py").write_text("")
    (folder / "small" / "counter.py").write_text(MODULE)
    return Source(folder, wheels)


@pytest.fixture
def real(tmp_path: Path) -> Source:
    """sqlwall itself, without what earlier builds left."""
    folder, wheels = tmp_path / "project", tmp_path / "wheels"
    wheels.mkdir()
    for name in ("sqlwall", "rulesets"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("hatch_build.py", ".gitignore", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, folder)
    return Source(folder, wheels)


PLAIN = {"small/__init__.py", "small/counter.py"}
EXTENSIONS = {f"small/counter{SUFFIX}", f"sqlwall__mypyc{SUFFIX}"}


def run_from(folder: Path, *arguments: str) -> str:
    """What Python prints that imports from `folder` first."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_mypyc
def test_a_wheel_is_compiled_and_keeps_its_sources(small: Source, tmp_path: Path) -> None:
    before = small.files()
    built = small.build()
    assert built.status == 0, built.output
    assert built.names() == PLAIN | EXTENSIONS
    assert not built.wheel.name.endswith("-none-any.whl")
    assert small.files() == before, "the build left files in the project"
    with ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = "from small import counter; c = counter.Counter(); c.add(3); print(counter.__file__, c.add(4))"
    assert run_from(tmp_path / "installed", "-c", code).split() == [
        str(tmp_path / "installed" / "small" / f"counter{SUFFIX}"),
        "7",
    ]


def test_a_wheel_is_not_compiled_where_that_is_forbidden(small: Source) -> None:
    built = small.build(FORBIDDEN)
    assert built.status == 0, built.output
    assert built.names() == PLAIN
    assert built.wheel.name == "small-1-py3-none-any.whl"
    assert "not compiled" not in built.output


def test_without_a_compiler_the_wheel_is_not_compiled_and_the_build_warns(small: Source) -> None:
    built = small.build(NO_COMPILER)
    assert built.status == 0, built.output
    assert built.names() == PLAIN
    assert "not compiled: there is no C compiler" in built.output


def test_without_a_compiler_on_the_path_the_wheel_is_not_compiled(small: Source, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    built = small.build({"PATH": str(tmp_path / "empty")})
    assert built.status == 0, built.output
    assert built.names() == PLAIN
    assert "not compiled: there is no C compiler" in built.output


@needs_mypyc
def test_a_compiler_that_fails_leaves_the_wheel_uncompiled_and_the_build_warns(
    small: Source, tmp_path: Path
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    built = small.build({"CC": str(broken)})
    assert built.status == 0, built.output
    assert built.names() == PLAIN
    assert "cc: broken" in built.output
    assert "not compiled: compiling failed" in built.output


@needs_mypyc
def test_code_that_mypyc_refuses_is_an_error_where_compiling_was_asked_for(small: Source) -> None:
    (small.folder / "small" / "counter.py").write_text("count: int = 'three'\n")
    built = small.build(ASKED)
    assert built.status != 0
    assert "Incompatible types" in built.output
    assert "SQLWALL_COMPILE=1, but compiling failed" in built.output


@pytest.mark.parametrize("function", ["build_wheel", "build_editable"])
def test_without_a_compiler_compiling_that_was_asked_for_is_an_error(small: Source, function: str) -> None:
    built = small.call(function, str(small.wheels), environment=ASKED | NO_COMPILER)
    assert built.status != 0
    assert "SQLWALL_COMPILE=1, but there is no C compiler" in built.output


def test_a_choice_that_is_neither_0_nor_1_is_an_error(small: Source) -> None:
    built = small.build({"SQLWALL_COMPILE": "yes"})
    assert built.status != 0
    assert "SQLWALL_COMPILE is 0, 1 or not set, not 'yes'" in built.output


def test_without_mypyc_and_setuptools_the_wheel_is_not_compiled(small: Source, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("without a compiler nobody asks for mypyc")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("hatchling", "packaging", "pathspec", "pluggy", "trove_classifiers"):
        spec = find_spec(name)
        assert spec is not None and spec.submodule_search_locations is not None
        (bare / name).symlink_to(spec.submodule_search_locations[0])
    built = small.call("build_wheel", str(small.wheels), start=("-S", "-c", BARE_BUILD, str(bare)))
    assert built.status == 0, built.output
    assert built.names() == PLAIN
    assert "not compiled: mypyc is not installed" in built.output


def test_an_editable_install_is_not_compiled(small: Source) -> None:
    before = small.files()
    built = small.build_editable()
    assert built.status == 0, built.output
    assert small.files() == before


@needs_mypyc
def test_an_editable_install_is_compiled_beside_its_sources_where_that_is_asked_for_until_the_next(
    small: Source,
) -> None:
    before = small.files()
    built = small.build_editable(ASKED)
    assert built.status == 0, built.output
    assert small.files() == before | EXTENSIONS
    assert (
        run_from(small.folder, "-c", "from small import counter; print(counter.__file__)")
        .strip()
        .endswith(SUFFIX)
    )
    plain = small.build(FORBIDDEN)
    assert plain.names() == PLAIN, "a wheel took the extension modules of an editable install"
    assert small.build_editable().status == 0
    assert small.files() == before, "extension modules that hide what is edited from now on"


def test_extension_modules_of_a_module_that_is_gone_are_removed_too(small: Source) -> None:
    stale = small.folder / "small" / f"renamed{SUFFIX}"
    stale.write_bytes(b"")
    assert small.build_editable().status == 0
    assert not stale.exists()


@pytest.mark.parametrize(
    ("function", "environment", "has_toolchain"),
    [
        ("get_requires_for_build_wheel", {}, True),
        ("get_requires_for_build_wheel", {"SQLWALL_COMPILE": "0"}, False),
        ("get_requires_for_build_wheel", {"SQLWALL_COMPILE": "1"}, True),
        ("get_requires_for_build_wheel", NO_COMPILER, False),
        ("get_requires_for_build_editable", {}, False),
        ("get_requires_for_build_editable", {"SQLWALL_COMPILE": "1"}, True),
        ("get_requires_for_build_sdist", {}, False),
    ],
)
def test_mypyc_is_downloaded_only_for_a_build_that_will_compile(
    small: Source, function: str, environment: dict[str, str], has_toolchain: bool
) -> None:
    if has_toolchain and shutil.which("cc") is None:
        pytest.skip("without a compiler nothing is asked for")
    asked = small.call(function, environment=environment)
    assert asked.status == 0, asked.output
    assert ("mypy[mypyc]" in asked.output) is has_toolchain


def test_the_real_project_builds_uncompiled_with_its_rulesets(real: Source, tmp_path: Path) -> None:
    built = real.build(FORBIDDEN)
    assert built.status == 0, built.output
    assert {"sqlwall/wire/frames.py", "sqlwall/_rulesets/agent-safe.yaml"} <= built.names()
    with ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "installed")
    output = run_from(tmp_path / "installed", "-m", "sqlwall", "--version")
    assert "(interpreted)" in output


@needs_mypyc
@pytest.mark.timeout(600)
@pytest.mark.skipif(
    os.environ.get("SQLWALL_TEST_COMPILED") != "1",
    reason="compiles for a minute or two: SQLWALL_TEST_COMPILED=1",
)
def test_the_real_project_builds_compiled(real: Source, tmp_path: Path) -> None:
    before = real.files()
    built = real.build(ASKED)
    assert built.status == 0, built.output
    assert real.files() == before, "the build left files in the project"
    for room in ("wire", "session"):
        sources = {path.stem for path in (real.folder / "sqlwall" / room).glob("[!_]*.py")}
        assert {f"sqlwall/{room}/{stem}{SUFFIX}" for stem in sources} <= built.names()
    with ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path / "installed")
    output = run_from(tmp_path / "installed", "-m", "sqlwall", "--version")
    assert "(compiled)" in output
