"""The cache on disk: what is damaged, foreign or unwritable is not there; a hit needs no compiler. And the compilation before calls."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime import _async_compile

from nsa_dsl import cache, notices
from nsa_dsl.loader import load_spec
from nsa_dsl.signature import from_names, names_of
from nsa_dsl.signing import sign
from nsa_dsl.warmup import compile_before_calls

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("NSA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library says meanwhile, nothing said before."""
    lines: list[str] = []
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setattr(notices, "notice", lambda text, *values: lines.append(text % values))
    return lines


def test_an_entry_is_made_once_and_read_again(root: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, str]:
        made.append(1)
        return {"a.py": "x = 1\n", "b.json": "{}"}

    first, second = (cache.read_or_make("texts", cache.key_of("this", 1), make) for _ in range(2))
    assert first == second == {"a.py": "x = 1\n", "b.json": "{}"}
    assert len(made) == 1
    assert root.stat().st_mode & 0o777 == 0o700
    assert cache.key_of("this", 1) != cache.key_of("this", 2)


def _truncate(entry: Path) -> None:
    (entry / "a.py").write_bytes(b"x =")


def _flip_a_bit(entry: Path) -> None:
    (entry / "a.py").write_bytes(b"y = 1\n")


def _drop_a_file(entry: Path) -> None:
    (entry / "a.py").unlink()


def _break_the_manifest(entry: Path) -> None:
    (entry / "manifest.json").write_text('{"a.py": ')


def _lead_outside(entry: Path) -> None:
    (entry.parent / "outside").write_text("secret")
    (entry / "manifest.json").write_text(json.dumps({"../outside": "0"}))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, _drop_a_file, _break_the_manifest, _lead_outside])
def test_a_damaged_entry_is_made_anew(root: Path, damage: Callable[[Path], None]) -> None:
    key = cache.key_of("damaged")
    for _ in range(2):
        assert cache.read_or_make("texts", key, lambda: {"a.py": "x = 1\n"}) == {"a.py": "x = 1\n"}
        damage(root / "texts" / key)
        assert cache.read_entry(root / "texts" / key) is None


def test_what_fails_is_not_kept(root: Path) -> None:
    def fail() -> dict[str, str]:
        raise NotImplementedError("no kernel")

    key = cache.key_of("fails")
    with pytest.raises(NotImplementedError):
        cache.read_or_make("texts", key, fail)
    assert cache.read_or_make("texts", key, lambda: {"a": ""}) == {"a": ""}
    assert (root / "texts" / key).is_dir()


def test_without_a_disk_all_is_made_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NSA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    for n in range(3):
        assert cache.read_or_make("texts", "key", lambda n=n: {"a": str(n)}) == {"a": str(n)}  # type: ignore[misc]
    assert len(said) == 1
    assert "no cache on disk" in said[0]


def test_a_full_disk_is_said_once_and_nothing_is_left(root: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    for key in ("one", "two"):
        assert cache.read_or_make("texts", key, lambda: {"a": "b"}) == {"a": "b"}
    assert len(said) == 1
    assert list((root / "texts").iterdir()) == []


def test_the_oldest_entries_go(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ENTRIES", 4)
    for n in range(5):
        cache.read_or_make("texts", f"key{n}", lambda: {"a": "b"})
        os.utime(root / "texts" / f"key{n}", (n, n))
    assert {each.name for each in (root / "texts").iterdir()} == {"key2", "key3", "key4"}


def test_a_folder_that_others_may_write_to_is_not_used(root: Path, said: list[str]) -> None:
    root.mkdir(mode=0o700)
    root.chmod(0o777)
    assert cache.cache_root() is None
    assert "others may write" in said[0]


def test_one_of_several_makes_an_entry(root: Path) -> None:  # noqa: ARG001 - the fixture sets the folder
    made: list[int] = []

    def make() -> dict[str, str]:
        made.append(1)
        time.sleep(0.05)
        return {"a": "b"}

    threads = [threading.Thread(target=cache.read_or_make, args=("texts", "key", make)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(made) == 1


@pytest.mark.parametrize(("file", "name"), [("nsa", "nsa"), ("asa", "global"), ("moba", "moba")])
def test_a_signature_survives_the_disk(file: str, name: str) -> None:
    spec = load_spec(EXAMPLES / f"{file}.nsa")
    pattern = spec.pattern(name if name in spec.patterns else spec.patterns[0])
    signature = sign(pattern)
    assert from_names(pattern, json.loads(json.dumps(names_of(signature)))) == signature


SECOND_PROCESS = """
import sys
from nsa_dsl.loader import load_spec
from nsa_dsl.launch import LaunchShape
from nsa_dsl.sources import compile_backward, compile_source, sign
pattern = load_spec(sys.argv[1]).pattern("nsa")
texts = sign(pattern), compile_source(pattern, LaunchShape()), compile_backward(pattern, LaunchShape())
print(len(texts[1]), len(texts[2]), *(name for name in ("islpy", "jinja2", "torch", "triton") if name in sys.modules))
"""


def test_a_second_process_needs_no_compiler(root: Path) -> None:
    def run() -> list[str]:
        command = [sys.executable, "-c", SECOND_PROCESS, str(EXAMPLES / "nsa.nsa")]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "NSA_CACHE_DIR": str(root)}
        ).stdout.split()

    first, second = run(), run()
    assert first[2:] == ["islpy", "jinja2"]
    assert second == first[:2]


class _Kernel:
    """Stands for a kernel of Triton: compiling takes a while and is handed to whoever compiles in parallel."""

    def __init__(self, name: str) -> None:
        self.__name__, self.launched, self.compiled = name, 0, list[str]()

    def __getitem__(self, _: Any) -> Callable[..., None]:
        def launch(*_: Any, **__: Any) -> None:
            self.launched += 1

        return launch

    def warmup(self, tensor: torch.Tensor, *, grid: Any, **_: Any) -> None:
        assert tensor.count_nonzero() == 0
        assert grid == (3,)
        mode = _async_compile.active_mode.get()
        assert mode is not None
        # What is to be done with the result, and in later versions without one.
        after = len(inspect.signature(mode.submit).parameters) - 2
        mode.submit(self.__name__, self._compile, *[lambda _: None] * after)

    def _compile(self) -> None:
        time.sleep(0.2)
        self.compiled.append(threading.current_thread().name)


def _module(**names: Any) -> types.ModuleType:
    module = types.ModuleType("generated")
    vars(module).update(names)
    source = """
def _launch(kernel, programs, *arguments, **constants):
    kernel[(programs,)](*arguments, **constants)

def _launch_hopper(kernel, programs, *arguments, **constants):
    kernel[(programs,)](*arguments, **constants)

def _help(out):
    _launch_hopper(second, 3, out, A=1)

def run(q, *, scale=None):
    out = torch.empty_like(q)
    _launch(first, 3, out, A=1)
    _help(out)
    if scale == "broken":
        raise ValueError("broken")
    return q
"""
    exec(source, vars(module))
    return module


def test_kernels_are_compiled_side_by_side_before_the_first_call_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("nsa_dsl.warmup.PATIENCE", 0.1)
    monkeypatch.setattr(notices, "notice", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    first, second = _Kernel("first"), _Kernel("second")
    module = _module(first=first, second=second, torch=torch)
    launch = module._launch
    compile_before_calls(module, "run", "nsa", "sm_90")
    q = torch.zeros(100, 128)
    started = time.monotonic()
    assert module.run(q) is q
    assert time.monotonic() - started < 0.39
    assert said == ["compiling 2 kernels of nsa for sm_90"]
    assert (len(first.compiled), len(second.compiled), first.launched, second.launched) == (1, 1, 1, 1)
    assert first.compiled != second.compiled
    module.run(q[:99])
    assert len(first.compiled) == 1
    assert module._launch is launch
    with pytest.raises(ValueError, match="broken"):
        module.run(q, scale="broken")
