"""The kernels in a program without Python: under sanitizers, and with the vectors of AVX-512 on
machines that do not have it."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import fused_rnn

ROOT = Path(__file__).resolve().parent.parent
AVAILABLE = fused_rnn._C.config()["isa_available"]
HAS_AVX512 = "avx512" in AVAILABLE


def sources(folder: str) -> list[Path]:
    left_out = "without_avx512" if HAS_AVX512 else "isa_avx512"
    found = sorted((ROOT / folder).glob("*.cpp"))
    return [source for source in found if not source.name.startswith(left_out)]


KERNELS = sources("csrc/cpu")
PROGRAM = sources("tests/cpp")
FLAGS = [
    "-std=c++20",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Werror",
    "-fno-sanitize-recover=all",
]
SANITIZERS = {
    # Without the checks that come with every access: null and stray accesses are the address
    # sanitizer's to find, and the unrolled kernels would take minutes more to compile.
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=null,alignment,object-size,vptr"],
    "thread": ["-fsanitize=thread"],
}
# Checks as calls rather than inline, again for the time to compile.
GCC_FLAGS = ["--param", "asan-instrumentation-with-call-threshold=0"]
CLANG_FLAGS = ["-mllvm", "-asan-instrumentation-with-call-threshold=0"]


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def sanitizer_flags(sanitizer: str) -> list[str]:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    calls = CLANG_FLAGS if "clang" in version.stdout else GCC_FLAGS
    return SANITIZERS[sanitizer] + (calls if sanitizer == "address" else [])


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


def build(folder: Path, *flags: str) -> str:
    """The program, whose kernels are compiled with these flags.

    Its own loops, which the results are compared with, are not: they would take a third of the
    time. What it gives the kernels is on the heap, and guarded nevertheless.
    """

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        own = ["-O1", *flags] if source in KERNELS else ["-O2"]
        run([compiler(), *FLAGS, *own, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, KERNELS + PROGRAM))
    program = str(folder / "kernels_test")
    run([compiler(), *flags, *objects, "-o", program, "-pthread"])
    return program


needs_compiler = pytest.mark.skipif(
    shutil.which(compiler()) is None, reason=f"no C++ compiler {compiler()}"
)


@needs_compiler
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels(sanitizer: str, tmp_path: Path) -> None:
    if sanitizer == "thread" and os.environ.get("FUSED_RNN_TEST_RACES") != "1":
        pytest.skip("takes five minutes more; FUSED_RNN_TEST_RACES=1 runs it")
    program = build(tmp_path, *sanitizer_flags(sanitizer))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda isa: run([program, isa]), AVAILABLE))


@needs_compiler
@pytest.mark.skipif(HAS_AVX512, reason="the machine has AVX-512 itself")
def test_vectors_of_avx512(tmp_path: Path) -> None:
    """The same tiles, panels and rules of size, without its instructions."""
    # GCC says of every function that takes such vectors that another compiler may pass them
    # otherwise.
    flags = ["-DFUSED_RNN_BASELINE_AS_WIDE_AS_AVX512", "-Wno-psabi"]
    run([build(tmp_path, *flags), "baseline"])
