"""The search for a call that the kernels get wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Generic, TypeAlias, TypeVar

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy

from nsa_dsl.compare import Mismatch
from nsa_dsl.launch import Dtype
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.verify.cases import GPU, INTERPRETER, Case, Range, cases
from nsa_dsl.verify.example import check_case
from nsa_dsl.verify.report import Failure, Report
from nsa_dsl.verify.scaling import shrink_parameters

SHRINK_SECONDS = 60.0
"""How long a failure is made smaller before it is reported as it is."""

VISIBLE_LENGTH = 80
"""Tokens at which scaled-down patterns should show their structure: what the interpreter bears."""

Example = TypeVar("Example", bound=Hashable)
Progress: TypeAlias = Callable[[int], None]
"""Called after each example with the number of examples done."""


class _DisagreementError(AssertionError):
    """Tells hypothesis that the example fails."""


def use_device(device: torch.device | str | None = None) -> torch.device:
    """The device to verify on: the one given, else a GPU if there is one, else the CPU under Triton's interpreter, which this switches on.

    Raises RuntimeError if triton has been imported for compiling already.
    """
    found = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if found.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        if "triton" in sys.modules:
            raise RuntimeError("triton was imported before its interpreter was switched on: set TRITON_INTERPRET=1 for this process")
        os.environ["TRITON_INTERPRET"] = "1"
    return found


def bounds_on(device: torch.device | str | None) -> tuple[torch.device, Range]:
    """`use_device`, and what that device bears."""
    place = use_device(device)
    return place, GPU if place.type == "cuda" else INTERPRETER


def verify_pattern(
    pattern: Pattern,
    *,
    examples: int = 50,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtypes: Sequence[Dtype] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Hold a pattern's kernels to the dense reference on random calls.

    Each example draws lengths around tile, block and window edges, head counts, head dimensions, element type, strides, value ranges
    and tile sizes. Checked are outputs and log-sum-exps row by row with the same choices on both sides, the exact set of keys each row
    sees, the choices themselves, and that NaN reaches only rows that see it. Three examples in five check the backward pass: gradients of
    all inputs, for cotangents of outputs and log-sum-exps, against float64 autograd; or the exact set of queries that each key's gradient
    sums over; or where NaN may show in gradients. A failing call is shrunk to the smallest that still fails.

    seed: what is drawn follows from it. device: default the GPU if there is one. dtypes: default all that the device computes rightly.
    Raises NotSupported for a pattern without kernels.
    """
    place, bounds = bounds_on(device)
    compiled = cache(lambda rows, cols: AttentionOp(pattern, rows=rows, cols=cols))
    differentiated = 0

    def check(case: Case) -> list[Mismatch]:
        nonlocal differentiated
        found = check_case(compiled(case.rows, case.cols), case, place)
        differentiated += case.gradients != "none"
        return found

    search = Search(check, examples, progress)
    started = time.monotonic()
    found = search.run(seed, cases(pattern, bounds, dtypes or bounds.dtypes))
    failure = None if found is None else Failure(*found)
    return Report(describe(pattern), search.done, differentiated, device_name(place), time.monotonic() - started, failure)


def verify_spec(
    path: str | os.PathLike[str],
    *,
    examples: int = 50,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtypes: Sequence[Dtype] | None = None,
    progress: Progress | None = None,
) -> tuple[Report, ...]:
    """Verify every pattern of a spec, and every layer of its models, each once; see `verify_pattern`.

    Where only short sequences are affordable (no GPU), a pattern whose parameters are too large to show there is tried with smaller ones
    too, with half of the examples. progress: counts through all of them. Raises SpecError, NotSupported.
    """
    place = use_device(device)
    patterns = patterns_to_try(path, scaled=place.type == "cpu")
    share = [examples // len(group) + (1 if examples % len(group) > at else 0) for group in patterns for at in range(len(group))]
    reports: list[Report] = []
    for pattern, count in zip((each for group in patterns for each in group), share, strict=True):
        before = sum(each.examples for each in reports)
        step = None if progress is None else _counted_from(progress, before)
        if count:
            reports.append(verify_pattern(pattern, examples=count, seed=seed, device=place, dtypes=dtypes, progress=step))
    return tuple(reports)


def patterns_to_try(path: str | os.PathLike[str], *, scaled: bool) -> list[tuple[Pattern, ...]]:
    """Each distinct pattern of a spec and of its models' layers, with, if scaled, the smaller one that shows more at short lengths."""
    spec = load_spec(path)
    found = [spec.pattern(name) for name in spec.patterns]
    found += [layer.pattern for name in spec.models for layer in spec.model(name).layers]
    distinct = {(each.name, each.parameters): each for each in found}.values()
    if not scaled:
        return [(each,) for each in distinct]
    return [tuple(dict.fromkeys((shrink_parameters(spec, each, VISIBLE_LENGTH), each))) for each in distinct]


def describe(pattern: Pattern) -> str:
    """`nsa(l=8, d=4)`."""
    return f"{pattern.name}({', '.join(f'{name}={value}' for name, value in pattern.parameters)})" if pattern.parameters else pattern.name


def _counted_from(progress: Progress, before: int) -> Progress:
    return lambda done: progress(before + done)


def device_name(place: torch.device) -> str:
    """What a report calls the device."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "interpreter on the CPU"


class Search(Generic[Example]):
    """One run of hypothesis over examples that `check` judges: it returns what is wrong, or calls `hypothesis.reject`.

    done: examples tried before the first failure, that one included.
    """

    def __init__(self, check: Callable[[Example], list[Mismatch]], examples: int, progress: Progress | None) -> None:
        self.done = 0
        self._check, self._examples, self._progress = check, examples, progress
        self._failing: dict[Example, tuple[Mismatch, ...]] = {}
        self._passed: set[Example] = set()
        self._last: Example | None = None
        self._deadline = float("inf")

    def run(self, seed: int, examples: SearchStrategy[Example]) -> tuple[Example, tuple[Mismatch, ...]] | None:
        """The smallest failing example and what is wrong with it, None if there is none."""
        settings = hypothesis.settings(
            max_examples=self._examples,
            derandomize=False,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )

        def example(drawn: Example) -> None:
            self._try(drawn)

        try:
            hypothesis.seed(seed)(settings(hypothesis.given(examples)(example)))()
        except (_DisagreementError, hypothesis.errors.Flaky):
            assert self._last is not None
            return self._last, self._failing[self._last]
        return None

    def _try(self, drawn: Example) -> None:
        if drawn in self._passed and not self._failing:
            # Hypothesis repeats itself now and then; another example is worth more.
            hypothesis.reject()
        # Out of time, only failures that are known fail: hypothesis then settles on the smallest of them.
        if drawn not in self._failing and time.monotonic() < self._deadline:
            found = self._judge(drawn)
            if not self._failing:
                self.done += 1
                if self._progress is not None:
                    self._progress(self.done)
            if not found:
                self._passed.add(drawn)
            else:
                self._failing[drawn] = tuple(found)
                self._deadline = min(self._deadline, time.monotonic() + SHRINK_SECONDS)
        if drawn in self._failing:
            self._last = drawn
            raise _DisagreementError(str(drawn))

    def _judge(self, drawn: Example) -> list[Mismatch]:
        try:
            return self._check(drawn)
        except hypothesis.errors.UnsatisfiedAssumption:
            raise
        except Exception as error:  # whatever a kernel raises is a finding, to be shrunk like any other
            return [Mismatch("call", (), float("nan"), 0.0, f"raised {type(error).__name__}: {error}")]
