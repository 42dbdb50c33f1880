"""Kernels compiled side by side in processes of their own, before they are measured.

Triton holds Python's lock for most of a compilation, so threads share one core. A worker writes what it compiled to Triton's cache on disk,
where the launching process finds it: both ask for the same source, argument types and options.
"""

from __future__ import annotations

import inspect
import linecache
import os
import pickle
import queue
import subprocess
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction

from nsa_dsl.execute import load_module
from nsa_dsl.warmup import compile_kernels

MOST_WORKERS = 16

_COMPILED, _FAILED = b"+", b"-"


@dataclass(frozen=True, slots=True)
class Job:
    """One compilation. source, title: of the generated module; kernel: its name there; the rest as Triton's own call has it."""

    source: str
    title: str
    kernel: str
    signature: Mapping[str, Any]
    constants: Mapping[Any, Any]
    attributes: Mapping[Any, Any]
    target: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A call of a generated module's host function, to be compiled for and not run."""

    module: types.ModuleType
    entry: str
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]


def note(module: types.ModuleType, entry: str, call: Callable[[], object]) -> Prepared:
    """The first call of a module's host function that `call` makes; neither it nor what would follow is run. Raises what `call` raises
    before."""
    seen: list[Prepared] = []
    run = vars(module)[entry]

    def noting(*arguments: Any, **options: Any) -> None:
        seen.append(Prepared(module, entry, arguments, options))
        raise _Noted

    setattr(module, entry, noting)
    try:
        call()
    except Exception:
        if not seen:
            raise
    finally:
        setattr(module, entry, run)
    return seen[0]


class _Noted(Exception):  # noqa: N818 - no error
    pass


class Compilers:
    """Worker processes that last until `close`; a context manager. Whatever they cannot do is compiled by the launching process."""

    def __init__(self, workers: int | None = None) -> None:
        """workers: None is one a core, up to MOST_WORKERS. They start while the caller goes on."""
        count = min(MOST_WORKERS, os.cpu_count() or 1) if workers is None else workers
        self._workers = [_start() for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for each in self._workers:
            self._idle.put(each)
        self._taken: weakref.WeakSet[types.ModuleType] = weakref.WeakSet()

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for each in self._workers:
            each.kill()
            each.wait()
        self._workers.clear()

    def take_over(self, module: types.ModuleType, title: str) -> None:
        """From now on kernels of this generated module are compiled by the workers when they are first asked for."""
        if module in self._taken:
            return
        self._taken.add(module)
        assert module.__file__ is not None
        source = "".join(linecache.getlines(module.__file__))
        kernels = [each for each in vars(module).values() if isinstance(each, JITFunction)]
        # A Triton that has no such attributes compiles here.
        with suppress(AttributeError):
            for kernel in kernels:
                # Triton sets `compile` together with what it knows of the device.
                _ = kernel.device_caches[triton.runtime.driver.active.get_current_device()]
                kernel.compile = self._compiling(kernel.compile, source, title)

    def compile(self, calls: Sequence[Prepared], title: str, card: str) -> None:
        """Compile what these calls would launch, all of them side by side. Their modules must have been taken over."""
        # Every thread has a current device of its own.
        device = torch.cuda.current_device() if torch.cuda.is_available() else -1

        def one(call: Prepared) -> None:
            run = inspect.unwrap(vars(call.module)[call.entry])
            with torch.cuda.device(device):
                compile_kernels(run, call.arguments, call.options, title, card)

        if calls:
            with ThreadPoolExecutor(len(calls)) as executor:
                list(executor.map(one, calls))

    def _compiling(self, here: Callable[..., Any], source: str, title: str) -> Callable[..., Any]:
        def compile_elsewhere(src: Any, target: Any = None, options: Any = None, **rest: Any) -> Any:
            # What goes wrong there goes wrong here again, where it can be reported.
            with suppress(Exception):
                self._send(Job(source, title, src.name, src.signature, src.constants, src.attrs, target, options))
            return here(src, target=target, options=options, **rest)

        return compile_elsewhere

    def _send(self, job: Job) -> bool:
        """Have a worker compile it, and wait. Returns whether it did."""
        text = pickle.dumps(job)
        worker = self._idle.get(timeout=60)
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(text)
            worker.stdin.flush()
            return worker.stdout.read(1) == _COMPILED
        except OSError:
            return False
        finally:
            # One that has ended says so at once when it is asked again.
            self._idle.put(worker)


def _start() -> subprocess.Popen[bytes]:
    code = "from nsa_dsl.bench.compilers import serve; serve()"
    package = str(Path(__file__).resolve().parent.parent.parent)
    path = os.pathsep.join(each for each in (package, os.environ.get("PYTHONPATH", "")) if each)
    # No card is needed, and a worker's own context would take memory from what is measured.
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve() -> None:
    """A worker's life: jobs from standard input, an answer each on standard output, until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    # Whatever a compiler prints is no answer.
    os.dup2(2, 1)
    jobs = sys.stdin.buffer
    while True:
        try:
            job: Job = pickle.load(jobs)
        except EOFError:
            return
        try:
            compile_job(job)
            answers.write(_COMPILED)
        except Exception:  # the launching process compiles it again and says what is wrong
            answers.write(_FAILED)
        answers.flush()


def compile_job(job: Job) -> Any:
    """Compile into Triton's cache on disk. Raises what Triton raises."""
    kernel = vars(_module(job.source, job.title))[job.kernel]
    made = (GluonASTSource if kernel.is_gluon() else ASTSource)(kernel, job.signature, dict(job.constants), dict(job.attributes))
    return triton.compile(made, target=job.target, options=dict(job.options))


@lru_cache(maxsize=8)
def _module(source: str, title: str) -> types.ModuleType:
    return load_module(source, title)
