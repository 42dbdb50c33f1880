"""The search for a call that the kernels get wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import hypothesis
import torch
from hypothesis import HealthCheck, Phase

from nsa_dsl.compare import Mismatch
from nsa_dsl.loader import load_spec
from nsa_dsl.op import AttentionOp
from nsa_dsl.pattern import Pattern
from nsa_dsl.schedule import Dtype
from nsa_dsl.verify.cases import GPU, INTERPRETER, Case, cases
from nsa_dsl.verify.checks import check_case
from nsa_dsl.verify.report import Failure, Report
from nsa_dsl.verify.scaling import shrink_parameters

SHRINK_SECONDS = 60.0
"""How long a failure is made smaller before it is reported as it is."""

VISIBLE_LENGTH = 80
"""Tokens at which scaled-down patterns should show their structure: what the interpreter bears."""

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
    and tile sizes; checks outputs and log-sum-exps row by row with the same choices on both sides, the exact set of keys each row sees,
    the choices themselves, and that NaN reaches only rows that see it. A failing call is shrunk to the smallest that still fails.

    seed: what is drawn follows from it. device: default the GPU if there is one. dtypes: default all that the device computes rightly.
    Raises NotSupported for a pattern without kernels.
    """
    place = use_device(device)
    bounds = GPU if place.type == "cuda" else INTERPRETER
    search = _Search(pattern, place, examples, progress)
    started = time.monotonic()
    failure = search.run(hypothesis.seed(seed), hypothesis.given(cases(pattern, bounds, dtypes or bounds.dtypes)))
    return Report(describe(pattern), search.done, _device_name(place), time.monotonic() - started, failure)


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


def _device_name(place: torch.device) -> str:
    return torch.cuda.get_device_name(place) if place.type == "cuda" else "interpreter on the CPU"


class _Search:
    """One run of hypothesis. done: examples tried before the first failure, that one included."""

    def __init__(self, pattern: Pattern, device: torch.device, examples: int, progress: Progress | None) -> None:
        self.done = 0
        self._device, self._examples, self._progress = device, examples, progress
        self._op = cache(lambda rows, cols: AttentionOp(pattern, rows=rows, cols=cols))
        self._failing: dict[Case, tuple[Mismatch, ...]] = {}
        self._last: Case | None = None
        self._deadline = float("inf")

    def run(self, seeded: Callable[..., Callable[[], None]], given: Callable[..., Callable[[], None]]) -> Failure | None:
        """The smallest failure, None if there is none."""
        settings = hypothesis.settings(
            max_examples=self._examples,
            derandomize=False,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )

        def example(case: Case) -> None:
            self._try(case)

        try:
            seeded(settings(given(example)))()
        except (_DisagreementError, hypothesis.errors.Flaky):
            assert self._last is not None
            return Failure(self._last, self._failing[self._last])
        return None

    def _try(self, case: Case) -> None:
        # Out of time, only failures that are known fail: hypothesis then settles on the smallest of them.
        if case not in self._failing and time.monotonic() < self._deadline:
            found = self._check(case)
            if not self._failing:
                self.done += 1
                if self._progress is not None:
                    self._progress(self.done)
            if found:
                self._failing[case] = tuple(found)
                self._deadline = min(self._deadline, time.monotonic() + SHRINK_SECONDS)
        if case in self._failing:
            self._last = case
            raise _DisagreementError(str(Failure(case, self._failing[case])))

    def _check(self, case: Case) -> list[Mismatch]:
        try:
            return check_case(self._op(case.rows, case.cols), case, self._device)
        except Exception as error:  # whatever a kernel raises is a finding, to be shrunk like any other
            return [Mismatch("call", (), float("nan"), 0.0, f"raised {type(error).__name__}: {error}")]
