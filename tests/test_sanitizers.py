"""The kernels under sanitizers, in a program without Python."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *sorted((ROOT / "csrc" / "cpu").glob("*.cpp")),
    ROOT / "tests" / "cpp" / "kernels_test.cpp",
]
FLAGS = [
    "-std=c++20",
    "-O1",
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


def compiler_flags(sanitizer: str) -> list[str]:
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    calls = CLANG_FLAGS if "clang" in version.stdout else GCC_FLAGS
    return FLAGS + SANITIZERS[sanitizer] + (calls if sanitizer == "address" else [])


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.skipif(shutil.which(compiler()) is None, reason=f"no C++ compiler {compiler()}")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_kernels(sanitizer: str, tmp_path: Path) -> None:
    if sanitizer == "thread" and os.environ.get("FUSED_RNN_TEST_RACES") != "1":
        pytest.skip("takes five minutes more; FUSED_RNN_TEST_RACES=1 runs it")
    flags = compiler_flags(sanitizer)

    def compile_one(source: Path) -> str:
        target = str(tmp_path / f"{source.stem}.o")
        run([compiler(), *flags, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    program = str(tmp_path / "kernels_test")
    run([compiler(), SANITIZERS[sanitizer][0], *objects, "-o", program, "-pthread"])
    run([program])
