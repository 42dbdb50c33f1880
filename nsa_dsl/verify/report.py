"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass

from nsa_dsl.compare import Mismatch
from nsa_dsl.verify.cases import Case


@dataclass(frozen=True, slots=True)
class Failure:
    """The smallest call found that the kernels get wrong, and what is wrong with it, worst first. text: the spec, if it was drawn, too."""

    case: Case
    mismatches: tuple[Mismatch, ...]
    text: str = ""

    def __str__(self) -> str:
        spec = "".join(f"\n    | {line}" for line in self.text.splitlines())
        shown = "".join(f"\n    {each}" for each in self.mismatches[:4])
        more = f"\n    and {len(self.mismatches) - 4} more" if len(self.mismatches) > 4 else ""
        return f"smallest failing call: {self.case}{spec}{shown}{more}"


@dataclass(frozen=True, slots=True)
class Report:
    """pattern: its name and parameters, as one would instantiate it; examples: calls tried, those that shrinking tried left out;
    gradients: those of them whose gradients were checked; device: where; seconds: wall clock; failure: None if every call agreed with
    the reference."""

    pattern: str
    examples: int
    gradients: int
    device: str
    seconds: float
    failure: Failure | None

    @property
    def ok(self) -> bool:
        """Whether every call agreed."""
        return self.failure is None

    def __str__(self) -> str:
        if self.failure is None:
            agree = f"{self.examples} examples agree with the reference, {self.gradients} of them in gradients too"
            return f"{self.pattern}: {agree} ({self.device}, {self.seconds:.1f} s)"
        return f"{self.pattern}: FAILED at example {self.examples} ({self.device}, {self.seconds:.1f} s)\n  {self.failure}"
