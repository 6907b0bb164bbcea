"""Build backend: setuptools, plus the one requirement that depends on where the package goes.

An extension module works only with the torch it was compiled against, and build isolation hides the
torch that is installed. The hooks below look for it in the environment that pip installs into and
name the same version as a build requirement; setup.py then makes the wheel require that version, so
that installing the package never replaces a torch that is already there.

FUSED_RNN_BUILD_TORCH=2.11.0 names another version: for front ends that run the backend in an
environment unrelated to the one installed into (`python -m build`, uv), where nothing can be found.
"""

import os
import site
import sys
import sysconfig
from importlib.metadata import distributions

from setuptools.build_meta import *  # noqa: F403

DEFAULT_TORCH = "2.13.0"
OLDEST_TORCH = (2, 10)


def _site_directories() -> list[str]:
    """Where the interpreter keeps its packages when it is not isolated."""
    schemes = [sysconfig.get_paths()]
    in_environment = sys.prefix != sys.base_prefix
    if in_environment and _sees_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
        schemes.append(sysconfig.get_paths(vars=base))
    found = [scheme[key] for scheme in schemes for key in ("purelib", "platlib")]
    if not in_environment:
        found.append(site.getusersitepackages())
    return found


def _sees_system_packages() -> bool:
    try:
        with open(os.path.join(sys.prefix, "pyvenv.cfg"), encoding="utf-8") as settings:
            text = settings.read().lower()
    except FileNotFoundError:
        return False
    return "include-system-site-packages = true" in text


def _torch_requirement() -> str:
    version = os.environ.get("FUSED_RNN_BUILD_TORCH")
    if not version:
        found = next(iter(distributions(name="torch", path=_site_directories())), None)
        version = found.version.partition("+")[0] if found else DEFAULT_TORCH
    major, minor = version.split(".")[:2]
    if (int(major), int(minor)) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SystemExit(f"fused_rnn needs torch {oldest} or newer; found torch {version}.")
    return f"torch=={version}"


# setuptools' own versions of these hooks would run setup.py, before torch can be imported.


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return [_torch_requirement()]


def get_requires_for_build_editable(config_settings: object = None) -> list[str]:
    return [_torch_requirement()]


def get_requires_for_build_sdist(config_settings: object = None) -> list[str]:
    return []
