"""Build of the extension module `fused_rnn._C`; everything static is in pyproject.toml.

Environment variables:
    FUSED_RNN_WERROR=1  compiler warnings are errors
    MAX_JOBS=N          number of parallel compiler processes
"""

import os
import sys
from glob import glob
from typing import Any

from setuptools import setup

CXX_FLAGS = [
    # torch 2.13 needs C++20 and asks for it by default; older releases would fall back to C++17.
    "-std=c++20",
    "-O3",
    # Python's own flags contain -g, which makes the binary ten times larger.
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
]
# Instruction sets are chosen at run time by target attributes inside the sources: no -march and no
# -m flag may appear here, because they would also reach inline functions of the C++ library and of
# torch that baseline code shares.


def public_version(version: str) -> str:
    """`version` without its local part: 2.13.0+cpu and 2.13.0+cu130 are both 2.13.0."""
    return version.partition("+")[0]


def openmp_runtime(torch_lib: str) -> list[str]:
    """Link arguments for the OpenMP runtime that libtorch itself loads.

    torch's wheels ship a libgomp of their own, under its plain name or under a hashed one. Linking
    that very file makes the loader find it already in memory; any other would be a second runtime
    with a second thread pool.
    """
    shipped = sorted(glob(os.path.join(torch_lib, "libgomp*.so*")))
    return shipped[:1] or ["-fopenmp"]


def extension_arguments() -> dict[str, Any]:
    """`ext_modules`, `cmdclass` and `install_requires`, against the torch that can be imported."""
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import (
            CUDA_HOME,
            BuildExtension,
            CppExtension,
            CUDAExtension,
            include_paths,
        )
    except ModuleNotFoundError as missing:
        if "sdist" in sys.argv:
            return {"install_requires": ["torch>=2.10", "numpy"]}
        raise SystemExit(
            f"fused_rnn is compiled against torch and pybind11, and {missing.name} is not "
            "installed here. Install it first, or let `pip install .` do so in its isolated "
            "build environment."
        ) from missing

    cuda_sources = sorted(glob("csrc/cuda/*.cu"))
    with_cuda = bool(cuda_sources and torch.version.cuda and CUDA_HOME)
    make_extension = CUDAExtension if with_cuda else CppExtension

    openmp = sys.platform.startswith("linux")
    extension = make_extension(
        name="fused_rnn._C",
        sources=sorted(glob("csrc/cpu/*.cpp") + glob("csrc/torch/*.cpp"))
        + (cuda_sources if with_cuda else []),
        include_dirs=["csrc"],
        define_macros=[("FUSED_RNN_TORCH_VERSION", f'"{torch.__version__}"')]
        + ([("FUSED_RNN_WITH_CUDA", None)] if with_cuda else []),
        depends=sorted(glob("csrc/**/*.h", recursive=True)),
    )

    # Headers that are not ours come in as system headers, so that our warning flags are silent
    # about them. pybind11's go first: torch brings an older copy along.
    ours = os.path.abspath("csrc")
    system = [pybind11.get_include(), *include_paths("cuda" if with_cuda else "cpu")]
    extension.include_dirs = [ours]
    extension.extra_compile_args = {
        "cxx": CXX_FLAGS
        + (["-fopenmp"] if openmp else [])
        + (["-Werror"] if os.environ.get("FUSED_RNN_WERROR") == "1" else [])
        + [argument for path in system for argument in ("-isystem", path)],
        "nvcc": ["-O3", "-std=c++20"]
        + [argument for path in system for argument in ("-isystem", path)],
    }
    if openmp:
        extension.extra_link_args = openmp_runtime(
            os.path.join(os.path.dirname(torch.__file__), "lib")
        )

    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "install_requires": [f"torch=={public_version(torch.__version__)}", "numpy"],
    }


setup(**extension_arguments())
