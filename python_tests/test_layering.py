# SPDX-License-Identifier: Apache-2.0
"""The rules of the layout, read from the sources: who may include or import whom."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cae_fast"
CSRC = ROOT / "csrc"

# What each folder of csrc may include; a folder that is not listed fails the test.
INCLUDES = {
    "core": {"core"},
    "search": {"core", "search"},
    "ops": {"core", "ops", "cpu", "cuda"},
    "cpu": {"core", "ops", "search", "cpu"},
    "cuda": {"core", "ops", "search", "cuda", "simt"},
    "simt": {"core", "simt"},
    "emu": {"core", "simt", "emu"},
    "engine": {"core", "ops", "search", "cpu", "cuda", "engine"},
    "bindings": {"core", "ops", "search", "cpu", "cuda", "engine", "bindings"},
    "fuzz": {"core", "ops", "search", "cpu", "engine", "fuzz"},
    "tests": {"core", "ops", "search", "cpu", "cuda", "engine", "simt", "emu", "tests"},
}
# Who may include what its folder may not: the emulator stands in for a GPU, where simt or the
# runtime's header says so, and its module reports what it counted.
INCLUDES_TOO = {
    "simt/simt.h": {"emu"},
    "simt/launch.h": {"emu"},
    "emu/gpu_runtime_emu.cpp": {"cuda"},
    "emu/graph_sequence_emu.cpp": {"cuda"},
    "bindings/module_emu.cpp": {"emu"},
}

# Layers of the package, lowest first: a module imports from its own layer or a lower one.
LAYERS = (
    ("errors", "_C"),
    ("files", "arrays", "class_names", "memory", "_backend"),
    (
        "ops",
        "decoding",
        "data_layout",
        "engine_files",
        "onnx_files",
        "pt2_files",
        "targets",
        "classifier_outputs",
        "classifier_input",
    ),
    ("reference", "networks", "authors", "model", "images", "saliency", "colors", "pictures"),
    (
        "data",
        "digits",
        "classifier",
        "classifier_calls",
        "classifier_files",
        "engines",
        "export",
        "isolated_onnx",
        "prepared_classifier",
        "testing",
    ),
    ("backends", "path_search", "classifier_calls"),
    ("bank", "bank_files", "exemplars", "manifold", "device_search"),
    (
        "codec",
        "explanation",
        "explanation_files",
        "group_search",
        "second_search",
        "explain_job",
        "explainer",
        "counterfactual_maps",
        "evidence_maps",
        "maps",
        "minimal_edits",
    ),
    ("client", "integrations", "report", "training", "environment"),
    ("evaluation", "serving"),
    ("demo", "ray_jobs"),
    ("benchmark",),
    ("cli",),
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
# Upward imports that are meant, inside functions only: a result knows how to show itself.
SHOWN_BY = {("explanation", "report")}
# Where torch may be imported while the module is loaded.
TORCH_HOMES = {"reference", "networks", "training"}
TORCH_FILES = {"backends/torch.py", "benchmark/torch_peers.py"}
# Packages that `import cae_fast` must not load.
HEAVY = (
    "torch",
    "captum",
    "fastapi",
    "httpx",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "openvino",
    "prometheus_client",
    "pyarrow",
    "pydantic",
    "quantus",
    "ray",
    "rich",
    "scipy",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "tritonclient",
    "typer",
    "umap",
    "uvicorn",
)


def python_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def native_files() -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})


def module_of(path: Path) -> str:
    """Top-level name inside the package: cae_fast/cli/main.py -> cli, __init__.py -> __init__."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layered_files() -> list[Path]:
    """Every file but the package's own: __init__.py names all modules, lazily."""
    return [path for path in python_files() if module_of(path) not in {"__init__", "__main__"}]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (absolute dotted name, runs while the module loads) for each import in a file."""
    package = ["cae_fast", *path.relative_to(PACKAGE).parts[:-1]]

    def walk(node: ast.AST, at_load: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_load) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                prefix = ".".join([*base, child.module] if child.module else base)
                yield from ((f"{prefix}.{alias.name}", at_load) for alias in child.names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, at_load and not inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def own_imports(path: Path) -> Iterator[tuple[str, bool]]:
    for name, at_load in imports(path):
        parts = name.split(".")
        if parts[0] == "cae_fast" and len(parts) > 1:
            yield parts[1], at_load


def test_every_module_has_a_layer() -> None:
    modules = {module_of(path) for path in layered_files()}
    assert modules <= set(LAYER_OF), "give the new module a place in LAYERS"


@pytest.mark.parametrize("path", layered_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports_point_down(path: Path) -> None:
    here = module_of(path)
    wrong = [
        name
        for name, at_load in own_imports(path)
        if name in LAYER_OF
        and LAYER_OF[name] > LAYER_OF.get(here, -1)
        and (at_load or (here, name) not in SHOWN_BY)
    ]
    assert not wrong, f"{here} must not import {wrong}"


def test_only_backend_imports_the_extension() -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in python_files()
        for name, _ in own_imports(path)
        if name in {"_C", "_C_emu"}
    }
    assert importers == {"_backend.py"}


def test_model_stands_alone() -> None:
    names = {name for name, _ in own_imports(PACKAGE / "model.py")}
    assert names <= {"errors", "files", "networks", "authors", "__version__"}


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_packages_are_imported_where_they_are_used(path: Path) -> None:
    loaded = {name.split(".")[0] for name, at_load in imports(path) if at_load}
    if module_of(path) in TORCH_HOMES or str(path.relative_to(PACKAGE)) in TORCH_FILES:
        loaded -= {"torch"}
    if module_of(path) == "cli":
        loaded -= {"rich", "typer"}
    assert not loaded & {*HEAVY, "torchvision"}


@pytest.mark.parametrize("where", ["python_tests", "bench"])
def test_tests_and_benchmarks_do_not_import_each_other(where: str) -> None:
    other = {"python_tests": "bench", "bench": "python_tests"}[where]
    for path in sorted((ROOT / where).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert all(name.split(".")[0] != other for name in names), path


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, cae_fast; "
        f"print(*[name for name in {HEAVY!r} if name in sys.modules]); "
        "dir(cae_fast), cae_fast.CAE, cae_fast.Explainer, cae_fast.Classifier, cae_fast.CodeBank; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "False"]


@pytest.mark.parametrize("path", native_files(), ids=lambda p: str(p.relative_to(CSRC)))
def test_native_includes_point_down(path: Path) -> None:
    folder = path.relative_to(CSRC).parts[0]
    allowed = INCLUDES[folder] | INCLUDES_TOO.get(path.relative_to(CSRC).as_posix(), set())
    if folder == "engine" and path.name.startswith("gpu_"):
        allowed |= {"cuda"}
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        found = next((p for p in (path.parent / name, CSRC / name) if p.is_file()), None)
        assert found is not None, f"{name} is not in csrc"
        target = found.resolve().relative_to(CSRC).parts[0]
        assert target in allowed, f"{folder} must not include {name}"
    system = re.findall(r"^\s*#\s*include\s+<([^>]+)>", text, re.MULTILINE)
    assert not [name for name in system if name.startswith(("torch", "ATen", "c10"))]
    pybind = any(name.startswith(("pybind11", "Python.h")) for name in system)
    assert not pybind or folder == "bindings", "only bindings/ sees pybind11"


def test_native_basenames_are_unique() -> None:
    counts = Counter(path.name for path in native_files())
    assert not [name for name, n in counts.items() if n > 1]


def test_cuda_switch_is_in_dispatch_only() -> None:
    users = {
        path.relative_to(CSRC).parts[0]
        for path in native_files()
        if re.search(r"^\s*#.*\bCAE_WITH_CUDA\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert users <= {"ops", "bindings", "tests"}


def test_kernels_do_not_know_the_emulator() -> None:
    users = {
        path.relative_to(CSRC).as_posix()
        for path in native_files()
        if re.search(r"^\s*#.*\bCAE_EMU\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert users == {"simt/simt.h", "simt/launch.h"}


def source_files() -> list[Path]:
    scripts = [p for d in (".ci", "bench", "csrc", "python_tests") for p in (ROOT / d).rglob("*")]
    files = {*python_files(), *native_files(), ROOT / "setup.py", ROOT / "CMakeLists.txt"}
    files |= {p for p in scripts if p.suffix in {".py", ".sh"} or p.name == "run"}
    return sorted(
        files | {ROOT / "Makefile", ROOT / "pyproject.toml"} | set(PACKAGE.rglob("*.pyi"))
    )


@pytest.mark.parametrize("path", source_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_source_file_habits(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    licence = lines[1] if lines[0].startswith("#!") else lines[0]
    assert licence in {f"{mark} SPDX-License-Identifier: Apache-2.0" for mark in ("#", "//")}
    assert len(lines) <= 400, f"{len(lines)} lines: split the file by subject"
    # Spelled in two parts, so that this file passes its own test.
    markers = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    assert not [line for line in lines if any(marker in line for marker in markers)]
