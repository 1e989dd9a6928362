# SPDX-License-Identifier: Apache-2.0
"""Step: build the extension for this GPU only, native tests, the probe and the risks' programs.

Parts are built side by side and fail apart; their logs go to the build folder.
"""

from __future__ import annotations

import concurrent.futures
import glob
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import machine
from record import BUILD, ROOT, Recorder, first_line

HERE = Path(__file__).resolve().parent
RISKS = sorted(path.stem for path in HERE.glob("risk_*.cu"))


def architecture() -> str:
    """What CMake is asked for: CAE_CUDA_ARCHITECTURES, or machine code of this GPU alone."""
    if given := os.environ.get("CAE_CUDA_ARCHITECTURES"):
        return given
    listed = machine.gpus()
    major, minor = listed[0]["capability"] if listed else (9, 0)
    return f"{major}{minor}{'a' if major == 9 else ''}-real"


def build_extension() -> str:
    """Configures, builds the module and copies it into the package."""
    cmake = shutil.which("cmake") or "cmake"
    _logged(
        "configure",
        cmake,
        *("-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
        *(f"-DPython_EXECUTABLE={sys.executable}", "-DCAE_CUDA=ON", "-DCAE_TESTS=ON"),
        f"-DCAE_CUDA_ARCHITECTURES={architecture()}",
    )
    _logged("extension", cmake, "--build", str(BUILD), "--target", "_C")
    modules = glob.glob(str(BUILD / "_C.*.so"))
    if not modules:
        raise RuntimeError("cmake built no _C")
    for module in modules:
        shutil.copy2(module, ROOT / "cae_fast")
    return architecture()


def native_tests() -> list[str]:
    """Names of the native tests that need a GPU, by the build's own list."""
    listed = subprocess.run(
        ["cmake", "--build", str(BUILD), "--target", "help"], capture_output=True, text=True
    ).stdout
    return sorted(set(re.findall(r"^(test_\w*cuda\w*): phony", listed, re.MULTILINE)))


def build_native_tests() -> str:
    """Builds the native tests with CUDA."""
    names = native_tests()
    if names:
        _logged("native", "cmake", "--build", str(BUILD), "--target", *names)
    return ", ".join(names) or "none"


def build_probe() -> str:
    """The library of probe.cpp, on the static libraries of the extension."""
    libraries = [str(BUILD / f"libcae_{part}_static.a") for part in ("cuda", "core")]
    _logged(
        "probe",
        *("nvcc", "-std=c++17", "-O2", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
        *(f"-I{ROOT / 'csrc'}", str(HERE / "probe.cpp"), *libraries),
        *("-o", str(BUILD / "libprobe.so"), "-lpthread"),
    )
    return "libprobe.so"


def build_risk(name: str, *, library: bool = False) -> str:
    """One program of a risk, or the library of risk 5, always for sm_90a."""
    target = BUILD / (f"lib{name}.so" if library else name)
    as_library = ("-DRISK_LIBRARY", "-shared", "-Xcompiler", "-fPIC") if library else ()
    _logged(
        target.name,
        *("nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", *as_library),
        *("-gencode=arch=compute_90a,code=sm_90a", "-o", str(target), str(HERE / f"{name}.cu")),
    )
    return target.name


def main() -> None:
    """Builds; fails if any part did."""
    found = Recorder()
    start = time.monotonic()
    BUILD.mkdir(parents=True, exist_ok=True)
    parts = {}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = {"extension": pool.submit(build_extension)}
        waiting |= {name: pool.submit(build_risk, name) for name in RISKS}
        waiting["risk 5 library"] = pool.submit(build_risk, "risk_5_graphs", library=True)
        for name, future in waiting.items():
            parts[name] = _outcome(future)
            found.put("parts", parts)
        if parts["extension"]["ok"]:
            # What checks need; the probe uses the engine's headers and may lag behind them.
            later = {
                "probe": pool.submit(build_probe),
                "native tests": pool.submit(build_native_tests),
                "import": pool.submit(_import_check),
            }
            for name, future in later.items():
                parts[name] = _outcome(future)
                found.put("parts", parts)
    failed = [name for name, part in parts.items() if not part["ok"]]
    found.put("seconds", time.monotonic() - start)
    found.say(
        f"{len(parts) - len(failed)} of {len(parts)} parts in {found.data['seconds']:.0f} s, "
        + (f"FAILED: {', '.join(failed)}" if failed else str(parts["extension"]["said"]))
    )
    for name in failed:
        print(f"{name}: {parts[name]['said']}")
    sys.exit(bool(failed))


def _import_check() -> str:
    """Imports the extension in a process of its own and runs its check kernel on the GPU."""
    code = (
        "from cae_fast import _backend; s = _backend.cuda_status(); "
        "_backend.check_cuda_device(0); "
        "print(s['compiler'], s['archs'], 'driver', s['driver'], 'run-time', s['runtime'])"
    )
    return _logged("import", sys.executable, "-c", code).strip().splitlines()[-1]


def _outcome(future: concurrent.futures.Future[str]) -> dict[str, object]:
    try:
        return {"ok": True, "said": future.result()}
    except Exception as error:  # a part's failure is a finding
        return {"ok": False, "said": first_line(error)}


def _logged(name: str, *command: str) -> str:
    """Runs a command; its output goes to a log, whose telling lines an error carries."""
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    (BUILD / f"{name}.log").write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        print(f"--- {name}: {' '.join(command)}\n{done.stdout[-6000:]}")
        lines = done.stdout.splitlines()
        telling = [line for line in lines if re.search(r"error|Error|fatal", line)]
        raise RuntimeError(f"{name} failed: " + " | ".join((telling or lines[-3:])[:3]))
    return done.stdout


if __name__ == "__main__":
    main()
