# SPDX-License-Identifier: Apache-2.0
"""Step: the GPU tests, Python's and the native ones, skips turned into failures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

from build_parts import native_tests
from record import BUILD, ROOT, Recorder, first_line

# The mark, or a fixture or file named for it.
_MENTIONS = re.compile(r"mark\.cuda|\bgpu\b|test_\w*(cuda|gpu|device)")
_COUNTS = re.compile(r"(\d+) (passed|failed|skipped|errors?)\b")


def counts_of(output: str) -> dict[str, int]:
    """Passed, failed, skipped, error by pytest's last line."""
    lines = [line for line in output.splitlines() if _COUNTS.search(line)]
    found = _COUNTS.findall(lines[-1]) if lines else []
    return {word.rstrip("s") if word == "errors" else word: int(number) for number, word in found}


def main() -> None:
    """Native tests first: they take seconds."""
    found = Recorder()
    deadline = time.monotonic() + float(os.environ.get("GPU_CHECK_STEP_SECONDS", "120")) - 5
    environment = os.environ | {"CAE_REQUIRE_CUDA": "1", "CAE_REQUIRE": "cuda"}
    native: dict[str, Any] = {}
    names = native_tests()
    for name in names:
        program = next(iter(BUILD.rglob(name)), None)
        if program is None or not os.access(program, os.X_OK):
            native[name] = "not built"
            continue
        try:
            done = subprocess.run(
                [str(program)], env=environment, capture_output=True, text=True, timeout=30
            )
            native[name] = "passed" if done.returncode == 0 else f"exit status {done.returncode}"
            print(f"--- {name}: {native[name]}\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
        except subprocess.TimeoutExpired as error:
            native[name] = first_line(error)
        found.put("native", native)
    output, status = "", None
    # Only the files that have such tests: others may need packages that are not installed here.
    files = [
        str(path)
        for path in sorted((ROOT / "python_tests").glob("test_*.py"))
        if _MENTIONS.search(path.name + path.read_text(encoding="utf-8"))
    ]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "--maxfail=20"]
    command += ["-p", "no:cacheprovider", "--durations=5", "--continue-on-collection-errors"]
    command += files
    log = BUILD / "pytest.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as stream:
            status = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=max(1.0, deadline - time.monotonic()),
            ).returncode
    except subprocess.TimeoutExpired:
        print("pytest: out of time")
    output = log.read_text(encoding="utf-8", errors="replace")
    print(output[-8000:])
    counts = counts_of(output)
    found.put("pytest", {"status": status, **counts})
    passed = all(said == "passed" for said in native.values())
    last = (output.strip().splitlines() or ["no result"])[-1]
    shown = ", ".join(f"{number} {word}" for word, number in counts.items()) or last[:200]
    ended = {None: "out of time", 0: shown, 5: "no test is marked cuda"}.get(status, shown)
    found.say(
        f"native: {sum(said == 'passed' for said in native.values())} of {len(native)} passed; "
        f"pytest -m cuda: {ended}"
    )
    sys.exit(not (passed and status == 0))


if __name__ == "__main__":
    main()
