"""What an installed copy holds, and what importing it costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from nsa_dsl.version import VERSION

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = ("codegen", "examples", "grammar", "templates")
DATA_SUFFIXES = (".json", ".lark", ".nsa", ".toml", ".j2")


def run(*command: str | Path, **environment: str) -> str:
    """Standard output of a command that must succeed; no PYTHONPATH, so that only what is installed is seen."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([str(each) for each in command], capture_output=True, text=True, env=clean | environment, check=False)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments)


def shipped_data() -> set[str]:
    """The data files that an installed copy needs, as paths in it."""
    return {
        str(path.relative_to(ROOT / "nsa_dsl"))
        for folder in ("examples", "grammar", "templates", "tuned")
        for path in (ROOT / "nsa_dsl" / folder).rglob("*")
        if path.suffix in DATA_SUFFIXES
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, links kept, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("nsa_dsl", *LINKED):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


CALL = """
import sys, torch, nsa_dsl
op = nsa_dsl.load("pattern p { output attend(tokens, causal) }").pattern("p").compile()
q, k, v = (torch.zeros(1, 2, 0, 16, requires_grad=True) for _ in range(3))
op(q, k, v).sum().backward()
print(q.grad is not None, [name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_a_first_call_imports_nothing_of_the_compiler_of_torch() -> None:
    assert run(sys.executable, "-c", CALL) == "True []\n"


def test_explicit_package_list_equals_disk() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder, _, names in os.walk(ROOT / "nsa_dsl", followlinks=True)
        for path in [Path(folder) / "__init__.py"]
        if path.name in names
    }
    assert sorted(found) == PROJECT["tool"]["setuptools"]["packages"]


def test_links_are_relative_and_lead_to_folders_beside_the_package() -> None:
    for name in LINKED:
        assert os.readlink(ROOT / "nsa_dsl" / name) == f"../{name}"


def test_wheel_holds_code_and_data_and_nothing_at_the_top(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"nsa_dsl", f"nsa_dsl-{VERSION}.dist-info"}
    code = {str(path.relative_to(ROOT)) for path in walk_python(ROOT / "nsa_dsl")}
    data = {f"nsa_dsl/{name}" for name in shipped_data()} | {"nsa_dsl/py.typed"}
    assert {name for name in names if "dist-info" not in name} == code | data
    assert f"nsa_dsl-{VERSION}.dist-info/licenses/LICENSE" in names


def walk_python(folder: Path) -> list[Path]:
    return [Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names if name.endswith(".py")]


REPORT = """
import importlib.metadata, importlib.resources, importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
for line in json.loads(sys.argv[3]):
    exec(line)
import nsa_dsl
root = importlib.resources.files("nsa_dsl")
print(json.dumps({
    "home": nsa_dsl.__file__,
    "version": importlib.metadata.version("nsa-dsl"),
    "packages": [name for name in json.loads(sys.argv[2])["packages"] if importlib.util.find_spec(name)],
    "data": [name for name in json.loads(sys.argv[2])["data"] if root.joinpath(name).is_file()],
    "top": [name for name in ("codegen", "examples", "grammar", "templates") if importlib.util.find_spec(name)],
}))
"""


def check_installation(site: Path, home: Path) -> None:
    """A bare interpreter, which sees this installation alone, finds everything and finds it once."""
    wanted = {"packages": PROJECT["tool"]["setuptools"]["packages"], "data": sorted(shipped_data())}
    hooks = [line for each in site.glob("*.pth") for line in each.read_text(encoding="utf-8").splitlines()]
    found = json.loads(run(sys.executable, "-I", "-S", "-c", REPORT, site, json.dumps(wanted), json.dumps(hooks)))
    assert found == {"home": str(home / "nsa_dsl" / "__init__.py"), "version": VERSION, "top": [], **wanted}


def test_installed_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", tmp_path, wheel)
    check_installation(tmp_path, tmp_path)
    assert (tmp_path / "bin" / "nsa").exists()


def test_editable_install_hides_the_linked_folders(source: Path, tmp_path: Path) -> None:
    # Without --ignore-installed pip would first remove the copy that runs this test.
    pip("install", "--ignore-installed", "--no-deps", "--no-build-isolation", "--prefix", tmp_path, "--editable", source)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    check_installation(site, source)


COST = """
import sys, time
sys.path.insert(0, sys.argv[1])
start = time.perf_counter()
import nsa_dsl
print(time.perf_counter() - start, *sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_import_is_quick_and_brings_no_heavy_library() -> None:
    runs = [run(sys.executable, "-I", "-c", COST, ROOT).split() for _ in range(5)]
    assert not {"torch", "triton", "islpy", "lark", "networkx", "jinja2", "numpy"} & set(runs[0][1:])
    assert min(float(each[0]) for each in runs) < 0.3


def test_help_is_quick_and_imports_no_torch() -> None:
    script = "import sys; sys.argv = ['nsa', '--help']; import atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    shown = run(sys.executable, "-c", script + "from nsa_dsl.cli import main; main()", PYTHONPATH=str(ROOT))
    assert shown.splitlines()[-1] == "False"
    assert "verify" in shown


def test_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d[^]]*)\]", changelog, flags=re.MULTILINE)
    assert released[0] == VERSION
    assert run(sys.executable, "-m", "nsa_dsl", "--version", PYTHONPATH=str(ROOT)).strip() == f"nsa {VERSION}"


def test_every_dependency_is_pinned_for_ci() -> None:
    pins = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    declared = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    assert {re.split("[<>=; ]", each)[0].lower() for each in declared} <= pins
