# SPDX-License-Identifier: Apache-2.0
"""What the project says about itself: version, pins, documents, the wheel."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import cae_fast as cf

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")}
)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def pins(name: str) -> dict[str, Version]:
    """Exact versions of a requirements file, with those of the file it builds on."""
    found: dict[str, Version] = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(line[3:].strip())
        elif line and not line.startswith("#"):
            package, version = line.split("==")
            found[canonicalize_name(package)] = Version(version)
    return found


def wanted(extras: list[str]) -> list[Requirement]:
    """Run-time, build and the given extras' requirements of pyproject.toml."""
    project = pyproject()["project"]
    lines = [*project["dependencies"], *pyproject()["build-system"]["requires"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [r for r in map(Requirement, lines) if canonicalize_name(r.name) != "cae-fast"]


def test_version_is_that_of_pyproject() -> None:
    version = pyproject()["project"]["version"]
    assert cf.__version__ == version == importlib.metadata.version("cae-fast")


def test_version_is_written_once() -> None:
    version = pyproject()["project"]["version"]
    holders = [
        path
        for path in (*(ROOT / "cae_fast").rglob("*.py"), ROOT / "setup.py", ROOT / "CMakeLists.txt")
        if version in path.read_text(encoding="utf-8")
    ]
    assert not holders


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("runtime.txt", ["onnx"]),
        ("dev.txt", ["all", "dev", "digits", "train"]),
        ("bench.txt", ["all", "dev", "bench"]),
    ],
)
def test_pins_satisfy_the_stated_ranges(name: str, extras: list[str]) -> None:
    pinned = pins(name)
    for requirement in wanted(extras):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no pin in {name}"
        assert version in requirement.specifier, f"{requirement} against {version}"


def test_every_extra_is_pinned_and_in_all() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    everything = set().union(*(Requirement(line).extras for line in extras["all"]))
    # `tensorrt` needs a data-centre GPU to be of use; tests and CI use `tensorrt-rtx`.
    assert everything == set(extras) - {"all", "dev", "bench", "tensorrt"}
    pinned = pins("dev.txt")
    for extra in everything:
        assert {canonicalize_name(r.name) for r in wanted([extra])} <= set(pinned)


def test_requirements_name_no_place() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|file:|--(index|extra|find)|@ |/", text), path


def test_missing_extras_exist() -> None:
    """An error that names an extra names one that pyproject.toml has."""
    extras = pyproject()["project"]["optional-dependencies"]
    for path in (ROOT / "cae_fast").rglob("*.py"):
        for extra in re.findall(r'missing_extra\(\s*"([^"]+)"', path.read_text(encoding="utf-8")):
            assert extra in extras, f"{path.name} names the extra {extra}"


def test_build_config_says_what_was_built() -> None:
    config = cf.build_config()
    said = {"compiler", "cxx_flags", "build_type", "cpu_isas", "cuda", "cuda_reason"}
    assert said | {"cuda_compiler", "cuda_archs", "sanitize"} == set(config)
    assert re.fullmatch(r"\w+ \d+(\.\d+)*", config["compiler"])
    assert "-ffast-math" not in config["cxx_flags"].split()
    assert config["cpu_isas"][0] == "portable"
    assert bool(config["cuda"]) == (not config["cuda_reason"])
    assert bool(config["cuda"]) == bool(config["cuda_compiler"]) == bool(config["cuda_archs"])


def test_contributing_tells_where_every_module_belongs() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, after = text.partition("| Subject | Modules |")
    table = after.partition("\n\n")[0]
    package = ROOT / "cae_fast"
    modules = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    named = set(re.findall(r"`([a-z]\w*/?|_backend)`", table))
    assert modules | folders <= named
    within = {path.stem for path in package.glob("*/*.py")}
    assert named <= modules | folders | within


def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    from cae_fast.demo import model_folder

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    try:
        folder = model_folder("digits")
    except cf.CAEError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnxruntime")
    count = len(list((folder / "samples").glob("*.png")))
    checks = f"import sys\nassert len(result) == {count} > 0\nassert 'torch' not in sys.modules\n"
    done = subprocess.run(
        [sys.executable, "-c", block + checks], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "flipped" in done.stdout
    assert (tmp_path / "explanation.html").stat().st_size > 1000


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def shell_commands() -> list[list[str]]:
    """Every `cae-fast VERB ...` command of the documents, as words."""
    commands = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if language not in {"", "sh"}:
                continue
            for line in block.replace("\\\n", " ").splitlines():
                words = line.partition("#")[0].split()
                if words and words[0].rpartition("/")[2] == "cae-fast":
                    commands.append(words[1:])
    return commands


def test_documented_commands_and_options_exist() -> None:
    commands = shell_commands()
    assert commands, "the README shows no command"
    program = Path(sys.executable).with_name("cae-fast")
    helps: dict[str, str] = {}
    for verb, *words in commands:
        if verb not in helps:
            done = subprocess.run(
                [program, verb, "--help"],
                capture_output=True,
                text=True,
                env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
            )
            assert done.returncode == 0, f"cae-fast {verb}: {done.stderr}"
            helps[verb] = done.stdout
        for option in [word.partition("=")[0] for word in words if word.startswith("--")]:
            assert option in helps[verb], f"cae-fast {verb} has no {option}"


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = re.findall(r"^make (\w+)", done.stdout, re.MULTILINE)
    assert {"setup", "demo", "test", "bench", "lint", "sanitize", "wheel", "docs", "clean"} <= {
        *listed
    }


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "demo", "*.so", "__pycache__", "*.egg-info", ".*_cache"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # The content is the question here, not the code: the quickest build will do.
    options = "-DCAE_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug"
    environment = {**os.environ, "PATH": tools, "CAE_CMAKE_ARGS": options}
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True, env=environment)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        assert all(archive.getinfo(name).file_size > 10_000 for name in libraries)
    assert len(libraries) == 1
    assert libraries[0].startswith("cae_fast/_C")
    metadata = f"cae_fast-{cf.__version__}.dist-info/"
    assert all(name.startswith(("cae_fast/", metadata)) for name in names)
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cae_fast").rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so"}
    }
    assert expected <= set(names)
    assert {f"{metadata}licenses/LICENSE", f"{metadata}licenses/DATA_LICENSES.md"} <= set(names)


@pytest.mark.parametrize(
    ("words", "outcome", "text"),
    [
        ("", 0, "1 skipped"),
        ("browser, ray", 0, "1 skipped"),
        ("shared", 1, "CAE_REQUIRE asks for shared"),
        ("shraed", pytest.ExitCode.USAGE_ERROR, "unknown ['shraed']"),
    ],
)
def test_required_things_fail_instead_of_skipping(
    tmp_path: Path, words: str, outcome: int, text: str
) -> None:
    tests = tmp_path / "project" / "python_tests"
    tests.mkdir(parents=True)
    shutil.copy(ROOT / "python_tests" / "conftest.py", tests)
    (tests / "test_it.py").write_text("def test_it(shared_dir): pass\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tests)],
        cwd=tests,
        capture_output=True,
        text=True,
        env={**os.environ, "CAE_REQUIRE": words},
    )
    assert done.returncode == outcome, done.stdout + done.stderr
    assert text in done.stdout + done.stderr
