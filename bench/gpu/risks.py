# SPDX-License-Identifier: Apache-2.0
"""Step: the study's risks, one program each, and a graph of torch's inside a body of ours.

An answer is a finding whichever way it falls; only a program that does not answer fails.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from typing import Any

from build_parts import RISKS
from record import BUILD, NO_GPU, Recorder, first_line


def answer_of(name: str) -> dict[str, Any]:
    """What a program said: its last line is JSON."""
    program = BUILD / name
    if not program.exists():
        return {"error": "not built"}
    try:
        done = subprocess.run([str(program)], capture_output=True, text=True, timeout=40)
    except subprocess.TimeoutExpired:
        return {"error": "no answer in 40 s"}
    if done.returncode == NO_GPU:
        return {"not_here": done.stdout.strip()}
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        said = " | ".join([*lines[-3:], done.stderr.strip()[-200:]])
        return {"error": f"exit status {done.returncode}: {said}"}
    return answer if isinstance(answer, dict) else {"error": lines[-1]}


def child_graph() -> dict[str, Any]:
    """A graph that torch captured, run three times as the body of a WHILE of our run-time."""
    try:
        import torch
    except ImportError as error:
        return {"not_here": first_line(error)}
    if not torch.cuda.is_available():
        return {"not_here": "no GPU"}
    try:
        library = ctypes.CDLL(str(BUILD / "librisk_5_graphs.so"))
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(8, 3, 3, padding=1),
        ).cuda()
        images = torch.randn(2, 3, 32, 32, device="cuda")
        count = torch.zeros(1, device="cuda")
        with torch.no_grad():
            expected = network(images)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):
                network(images)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph(keep_graph=True)
            with torch.cuda.graph(graph):
                out = network(images)
                count += 1
            out.zero_()
            count.zero_()
            torch.cuda.synchronize()
        step = ctypes.c_char_p()
        handle = ctypes.c_void_p(graph.raw_cuda_graph())
        refused = library.risk_run_child(handle, ctypes.c_int(3), ctypes.byref(step))
        torch.cuda.synchronize()
        if refused:
            where = (step.value or b"").decode()
            return {"fine": False, "verdict": f"refused: CUDA error {refused} at {where}"}
        apart = float((out - expected).abs().max())
        right = int(count.item()) == 3 and apart < 1e-4
        return {
            "fine": right,
            "verdict": "runs as a body of ours" if right else "runs, but the values are wrong",
            "numbers": {"largest difference": apart, "turns": float(count.item())},
        }
    except Exception as error:  # whatever torch makes of it is the answer
        return {"error": first_line(error)}


def main() -> None:
    """Asks every program, then torch."""
    found = Recorder()
    if sys.argv[1:] == ["child"]:
        print(json.dumps(child_graph()))
        return
    answers: dict[str, Any] = {}
    for name in RISKS:
        answers[name] = answer_of(name)
        found.put("answers", answers)
        print(name, json.dumps(answers[name]), flush=True)
    try:  # apart: it may take the process with it
        done = subprocess.run(
            [sys.executable, __file__, "child"], capture_output=True, text=True, timeout=40
        )
        lines = done.stdout.strip().splitlines()
        answers["torch_graph"] = json.loads(lines[-1]) if lines else {"error": done.stderr[-300:]}
    except (subprocess.TimeoutExpired, ValueError) as error:
        answers["torch_graph"] = {"error": first_line(error)}
    found.put("answers", answers)
    print("torch_graph", json.dumps(answers["torch_graph"]), flush=True)
    parts = []
    for name, answer in answers.items():
        short = name.removeprefix("risk_").replace("_", " ")
        if "fine" in answer:
            parts.append(f"{short}: {'yes' if answer['fine'] else 'NO'}")
        else:
            parts.append(f"{short}: {answer.get('not_here') or 'no answer'}")
    found.say(", ".join(parts))
    if all("not_here" in answer for answer in answers.values()):
        sys.exit(NO_GPU)
    sys.exit(any("error" in answer for answer in answers.values()))


if __name__ == "__main__":
    main()
