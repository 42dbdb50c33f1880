"""Random calls of a pattern's kernels, held to the dense reference; a failing call is shrunk before it is reported."""

from nsa_dsl.verify.report import Failure, Report
from nsa_dsl.verify.search import describe, patterns_to_try, use_device, verify_pattern, verify_spec

__all__ = ["Failure", "Report", "describe", "patterns_to_try", "use_device", "verify_pattern", "verify_spec"]
