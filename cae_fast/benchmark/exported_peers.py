# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime and OpenVINO as peers, on a network exported from PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .tasks import Arrays, NetworkTask


def onnxruntime_program(
    file: Path, batch_name: str, task: NetworkTask, threads: int
) -> Callable[[], Arrays]:
    """ONNX Runtime with every graph optimisation, its shapes fixed to the task's."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(batch_name, len(task.inputs[0]))
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, task.inputs, strict=True))
    return lambda: tuple(session.run(None, feeds))


def openvino_program(file: Path, task: NetworkTask, threads: int) -> Callable[[], Arrays]:
    """OpenVINO for latency, float32 throughout, its shapes fixed to the task's."""
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    inputs = list(task.inputs)
    model.reshape({i: list(array.shape) for i, array in enumerate(inputs)})
    program = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = program.create_infer_request()

    def run() -> Arrays:
        # Views of the request's own memory: nothing is copied.
        results = request.infer(inputs, share_inputs=True, share_outputs=True)
        return tuple(results[i] for i in range(len(program.outputs)))

    return run
