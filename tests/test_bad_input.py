"""Bad input, through the real command line and through `load_spec`: a located message, exit status 2, no traceback, quickly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_dsl.diagnostics import MOST_SHOWN, SpecError
from nsa_dsl.limits import MAX_BYTES
from nsa_dsl.loader import load_spec
from nsa_dsl.prove import check_claims

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.nsa"))
GOOD = b"pattern p {\n    output attend(tokens, causal)\n}\n"
SELECTING = """pattern p {
    s = compress(block = 32, stride = 16, by = mean)
    c = attend(s, causal)
    f = attend(tokens, causal & top(4, block = 40, by = c, share = group))
    output gate(c, f)
}
"""
RUN = (sys.executable, "-m", "nsa_dsl")
SECOND = 2.0
"""Seconds of processor time that may take one on a machine that does nothing else."""


def where(relation: str) -> str:
    return f"pattern p {{\n    output attend(tokens, {relation})\n}}\n"


def chain(first: str, step: str, length: int) -> str:
    """relation r0 = first, then relations that each use the one before it."""
    later = "".join(f"relation r{n}{step.format(n=n, before=n - 1)}\n" for n in range(1, length))
    return f"relation r0{first}\n{later}"


TEXTS: dict[str, tuple[str, str | bytes]] = {
    "unknown name": ("unknown-name", where("casual")),
    "wrong type": ("wrong-kind", where("4")),
    "not affine": ("not-affine", "relation r = { i, j : i * j < 4 }\n"),
    "misaligned": ("selection-misaligned", SELECTING),
    "duplicate": ("duplicate-declaration", "relation r = causal\nrelation r = full\n"),
    "cycle": ("relation-cycle", "relation a = b\nrelation b = a\n"),
    "one byte too many": ("spec-too-large", GOOD + b" " * (MAX_BYTES + 1 - len(GOOD))),
    "65 brackets": ("nesting-too-deep", where("(" * 65 + "causal" + ")" * 65)),
    "60,000 brackets": ("nesting-too-deep", "(" * 60_000 + "\n"),
    "5,000 minus signs": ("nesting-too-deep", f"relation r = {{ i, j : {'-' * 5000}i < j }}\n"),
    "5,000 digits": ("number-too-long", where(f"window({'9' * 5000})")),
    "5,000 digits of a real number": ("number-too-long", f"pattern p {{ output attend(tokens, causal, scale = {'9' * 5000}.5) }}"),
    "an infinite real number": ("number-too-large", "pattern p { output attend(tokens, causal, scale = 1e999999) }"),
    "NUL": ("nul-character", b"# a\0b\n" + GOOD),
    "invalid UTF-8": ("invalid-utf8", b"# \xff\n" + GOOD),
    "byte order mark": ("byte-order-mark", b"\xef\xbb\xbf" + GOOD),
    "lone carriage return": ("carriage-return", GOOD.replace(b"\n", b"\r")),
    "empty": ("empty-spec", b""),
    "a range of 2^31": ("union-too-long", "relation r = union p in 0..2147483647 { i, j : j == p }\n"),
    "a union of unions": ("spec-too-complex", "relation r = union p in 0..1000 union q in 0..1000 { i, j : p < q }\n"),
    "doubling calls": (
        "spec-too-complex",
        chain("(a) = { i, j : i < j + a }", "(a) = r{before}(2 * a) | r{before}(2 * a + 1)", 25) + where("r24(1)"),
    ),
    "doubling relations": (
        "relation-too-large",
        chain(" = { i, j : i // 3 == j // 3 }", " = (r{before} & window({n})) | (r{before} - window({n}))", 60) + where("r59"),
    ),
    "4,097 layers": ("bad-layer-count", where("causal") + "model m { layers 4097 { repeat p } }\n"),
    "2^31 repetitions": ("bad-layer-count", where("causal") + "model m { layers 8 { repeat p * 2147483647 } }\n"),
    "2^31 negative layers": ("too-small", where("window(0)") + "model m { layers 0 { 0 - 2147483647..2: p rest: p } }\n"),
    "2^31 layers to reach within": ("bad-layer-count", "pattern p { output attend(tokens, causal) assert reach causal within 2147483647 }"),
    "2^31 tokens to count": ("length-too-long", "pattern p { output attend(tokens, causal) assert density <= 1 at 2147483647 }"),
    "4,000 assertions": ("too-many-assertions", f"pattern p {{ output attend(tokens, causal) {'assert causal ' * 4000} }}"),
    "among itself": (
        "unknown-name",
        "pattern p { c = attend(tokens, causal & top(2, block = 16, by = mean, share = head, among = c)) output c }",
    ),
    "`document` in a union over slots": (
        "document-opaque",
        "pattern p { output attend(compress(block = 8, stride = 8, by = mean), (causal & document) | first(3)) }",
    ),
}


@pytest.mark.parametrize("what", TEXTS)
def test_a_bad_text_is_a_located_diagnostic_in_under_a_second(what: str) -> None:
    load_spec(GOOD)  # imports do not count
    code, text = TEXTS[what]
    started = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_spec(text)
    assert time.process_time() - started < SECOND
    assert caught.value.diagnostics[0].code == code
    assert re.match(rf"error\[{code}\]: .+\n +--> <text>:\d+:\d+\n", str(caught.value))
    assert str(caught.value).count("error[") <= MOST_SHOWN


def test_a_misaligned_block_comes_with_the_next_legal_value() -> None:
    with pytest.raises(SpecError, match="use block = 48, the next multiple of 16"):
        load_spec(SELECTING)


def test_lines_may_end_with_carriage_return_and_line_feed() -> None:
    assert load_spec(GOOD.replace(b"\n", b"\r\n")).pattern("p").branches == load_spec(GOOD).pattern("p").branches


def test_many_errors_are_all_there_and_the_first_are_printed() -> None:
    conditions = " and ".join(f"x{n} < y{n}" for n in range(100))
    with pytest.raises(SpecError) as caught:
        load_spec(f"relation r = {{ i, j : {conditions} }}\n")
    assert len(caught.value.diagnostics) == 200
    assert str(caught.value).endswith("\n\nand 180 more")


def test_what_loads_can_be_had() -> None:
    deep = chain(" = window(3)", " = (r{before} | first({n})) & window({n})", 40)
    assert load_spec(deep + where("r39")).pattern("p").name == "p"


def test_deep_arithmetic_of_huge_divisions_is_drawn_and_compiled() -> None:
    from nsa_dsl.compiler import compile_source
    from nsa_dsl.picture import Frame, draw_pattern

    residues = " or ".join(f"(i * {n} + j * {n + 1}) % {2 * n + 3} < {n + 1}" for n in range(2, 60))
    pattern = load_spec(f"relation r = {{ i, j : {residues} }}\n" + where("causal & r")).pattern("p")
    started = time.process_time()
    assert draw_pattern(pattern, Frame(tokens=128))
    assert compile_source(pattern)
    assert time.process_time() - started < 5 * SECOND


def test_a_count_that_takes_long_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = load_spec("pattern p { output attend(tokens, { i, j : (3 * i + j) % 7 < 3 }) assert density <= 0.5 at 1000 }").pattern("p")
    assert [each.status for each in check_claims(pattern)] == ["proved"]
    monkeypatch.setattr("nsa_dsl.count._MOST_WORK", 100)
    assert [each.status for each in check_claims(pattern)] == ["undecided"]


def nsa(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`nsa` with these arguments in a process of its own, in this folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run([*RUN, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


def check_refused(done: subprocess.CompletedProcess[str], code: str, place: str) -> None:
    assert done.returncode == 2, done.stderr
    assert f"error[{code}]" in done.stderr
    assert re.search(rf"^ +--> {re.escape(place)}:\d+:\d+$", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_every_bad_text_is_refused_by_the_command(tmp_path: Path) -> None:
    for number, (_, text) in enumerate(TEXTS.values()):
        (tmp_path / f"f{number}.nsa").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = nsa(tmp_path, "check", *(f"f{number}.nsa" for number in range(len(TEXTS))))
    for number, (code, _) in enumerate(TEXTS.values()):
        check_refused(done, code, f"f{number}.nsa")
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["check", "fmt"])
def test_what_is_no_spec_file_is_refused_without_waiting(command: str, tmp_path: Path) -> None:
    (tmp_path / "folder.nsa").mkdir()
    (tmp_path / "loop.nsa").symlink_to("loop.nsa")
    os.mkfifo(tmp_path / "pipe.nsa")
    done = nsa(tmp_path, command, "absent.nsa", "folder.nsa", "loop.nsa", "pipe.nsa", "/dev/zero")
    for code, name in (
        ("file-not-found", "absent.nsa"),
        ("not-a-file", "folder.nsa"),
        ("unreadable-file", "loop.nsa"),
        ("not-a-file", "pipe.nsa"),
        ("not-a-file", "/dev/zero"),
    ):
        check_refused(done, code, name)


def test_use_does_not_leave_the_folder(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.nsa").write_text("relation secret = causal\n")
    (inside / "link.nsa").symlink_to(tmp_path / "secret.nsa")
    (inside / "top.nsa").write_text(f'use "../secret.nsa"\nuse "link.nsa"\nuse "{tmp_path}/secret.nsa"\n')
    done = nsa(inside, "check", "top.nsa")
    check_refused(done, "use-outside", "top.nsa")
    check_refused(done, "bad-use-path", "top.nsa")
    assert [line.split(":")[1] for line in done.stderr.splitlines() if "-->" in line] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "arguments",
    ["", "chekc x.nsa", "check", "check --head 4 x.nsa", "check --heads 0 x.nsa", "check --heads many x.nsa", "show --tile x.nsa x.nsa",
     "graph --format png x.nsa", "compile x.nsa", "verify --examples 0 x.nsa", "demo x.nsa", "fmt"],
)  # fmt: skip
def test_a_mistyped_command_is_a_usage_error(arguments: str, tmp_path: Path) -> None:
    (tmp_path / "x.nsa").write_bytes(GOOD)
    done = nsa(tmp_path, *arguments.split())
    assert done.returncode == 2
    assert "Usage: nsa" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


FRESH = """
import sys, time
start = time.process_time()
from nsa_dsl.compiler import compile_source
from nsa_dsl.loader import load_spec
source = compile_source(load_spec(sys.argv[1]).pattern("nsa"))
print(time.process_time() - start, "torch" in sys.modules, "triton" in sys.modules, len(source) > 10_000)
"""


def test_from_text_to_kernel_source_takes_under_two_seconds_and_no_torch() -> None:
    command = [sys.executable, "-c", FRESH, str(ROOT / "examples" / "nsa.nsa")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert shown[1:] == ["False", "False", "True"]
    assert float(shown[0]) < 2


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """An example with a few bytes replaced, inserted or removed, or a stretch of it copied elsewhere."""
    text = bytearray(draw(st.sampled_from(EXAMPLES)).read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        at, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        piece = draw(st.binary(max_size=3) | st.sampled_from([b"(", b")", b"{", b"}", b"9" * 12, b"..", b"**", b" union ", b"tokens"]))
        match draw(st.sampled_from(["replace", "insert", "remove", "copy"])):
            case "replace":
                text[at : at + len(piece)] = piece
            case "insert":
                text[at:at] = piece
            case "remove":
                del text[at : min(end, at + 8)]
            case _:
                text[end:end] = text[at : min(end, at + 40)]
    return bytes(text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_a_damaged_example_is_refused_or_loads(text: bytes) -> None:
    started = time.process_time()
    try:
        spec = load_spec(text)
        for name in spec.patterns:
            spec.pattern(name)
    except SpecError:
        pass
    assert time.process_time() - started < SECOND
