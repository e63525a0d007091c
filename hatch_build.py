"""Build hook: a wheel holds its hot modules compiled by mypyc where that is possible, beside the same source.

Which modules is said in pyproject.toml. SQLWALL_COMPILE=1 insists (a wheel that cannot be compiled is an error, and an
editable install is compiled beside its sources), 0 forbids. Without it a wheel is compiled where a C compiler and mypyc
are at hand, and an editable install never is, since an edit would change nothing until the next build. pip shows a
build's warnings only with -v; `sqlwall --version` says what runs.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: mypyc generates C that its own version of setuptools' compiler layer builds; the extra asks for both.
TOOLCHAIN = ["mypy[mypyc]>=1.18"]

#: The library that holds all modules' code; the extension modules beside the sources only point to it.
LIBRARY = "sqlwall__mypyc"


class CompileHook(BuildHookInterface[Any]):
    """Adds the extension modules to the wheel and gives it the tag of this interpreter and platform."""

    def dependencies(self) -> list[str]:
        """What an isolated build has to install first: nothing, where nothing will be compiled."""
        choice = _choice()
        if choice is None and _is_asked_for_editable():
            return []
        return TOOLCHAIN if choice is not False and _has_compiler() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say why not."""
        choice = _choice()
        is_editable = version == "editable"
        sources = [
            path for pattern in self.config["modules"] for path in sorted(Path(self.root).glob(pattern))
        ]
        if is_editable:
            _remove_extensions(Path(self.root), sources)
        if choice is False or (choice is None and is_editable):
            return
        obstacle = _obstacle()
        if obstacle and choice:
            raise RuntimeError(f"SQLWALL_COMPILE=1, but {obstacle}")
        if obstacle:
            self.app.display_warning(f"not compiled: {obstacle}")
            return
        # Removed once the hook is, which is after the wheel has been written.
        self._folder = tempfile.TemporaryDirectory(prefix="sqlwall-build-")
        built = Path(self._folder.name, "lib")
        if not _compile(Path(self.root), sources, built, Path(self._folder.name, "c")):
            if choice:
                raise RuntimeError("SQLWALL_COMPILE=1, but compiling failed; the reason stands above")
            self.app.display_warning("not compiled: compiling failed; the reason stands above")
            return
        files = {path: path.relative_to(built) for path in built.rglob("*") if path.is_file()}
        if is_editable:
            for path, inside in files.items():
                shutil.copy(path, Path(self.root, inside))
            return
        build_data["force_include"].update({str(path): str(inside) for path, inside in files.items()})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True


def _choice() -> bool | None:
    """What SQLWALL_COMPILE says; None if it says nothing."""
    text = os.environ.get("SQLWALL_COMPILE", "")
    if text not in ("", "0", "1"):
        raise ValueError(f"SQLWALL_COMPILE is 0, 1 or not set, not {text!r}")
    return bool(int(text)) if text else None


def _is_asked_for_editable() -> bool:
    """Whether it is an editable install's requirements that are asked for. Hatchling calls the hook alike for both."""
    names = (frame.f_code.co_name for frame, _ in traceback.walk_stack(None))
    return "get_requires_for_build_editable" in names


def _has_compiler() -> bool:
    """Whether there is a C compiler, and Python's headers for it."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return shutil.which(shlex.split(command)[0]) is not None and headers.is_file()


def _obstacle() -> str | None:
    if not _has_compiler():
        return "there is no C compiler, or it has no headers of Python"
    for name in ("mypyc", "setuptools"):
        if find_spec(name) is None:
            return f"{name} is not installed"
    return None


def _remove_extensions(root: Path, sources: list[Path]) -> None:
    """Those of an earlier editable install would hide what has been edited since, whatever Python they are for."""
    for folder in {source.parent for source in sources}:
        for path in [*folder.glob("*.so"), *folder.glob("*.pyd")]:
            path.unlink()
    for path in [*root.glob(f"{LIBRARY}.*.so"), *root.glob(f"{LIBRARY}.*.pyd")]:
        path.unlink()


def _compile(root: Path, sources: list[Path], built: Path, scratch: Path) -> bool:
    """Whether the modules were compiled into `built`. In a process of its own: mypyc exits where it fails."""
    command = [sys.executable, __file__, str(built), str(scratch)]
    names = [str(source.relative_to(root)) for source in sources]
    ran = subprocess.run([*command, *names], cwd=root, stdout=sys.stderr, check=False)  # noqa: S603
    return ran.returncode == 0


def _compile_here(built: str, scratch: str, names: list[str]) -> None:
    """What that process does, in the project's folder."""
    from mypyc.build import mypycify  # noqa: PLC0415  -- an uncompiled build does without
    from setuptools import Distribution  # noqa: PLC0415

    # Types are checked by `mypy --strict` elsewhere. Here other packages are left out, so that the code that comes out
    # does not depend on which of them the build environment has.
    options = ["--config-file=", "--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent"]
    extensions = mypycify(
        [*options, f"--cache-dir={Path(scratch, 'cache')}", *names],
        opt_level="3",
        debug_level="0",
        target_dir=scratch,
        group_name=LIBRARY.removesuffix("__mypyc"),
    )
    if sys.platform != "win32":
        for extension in extensions:
            # mypyc makes warnings errors; what another compiler suspects in generated code is no reason to do without.
            extension.extra_compile_args.append("-Wno-error")
    command = Distribution({"name": "sqlwall", "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib = built
    command.build_temp = scratch
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    _compile_here(sys.argv[1], sys.argv[2], sys.argv[3:])
