"""Files: paths, texts, `use`, and everything that a hostile folder could hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from golden_files import check_golden

from nsa_dsl.diagnostics import SpecError
from nsa_dsl.loader import MAX_FILES, MAX_USE_DEPTH, load_spec

_GOOD = "pattern p { output attend(tokens, near) }\n"
_NEAR = "relation near = window(4)\n"

FILE_CASES: dict[str, dict[str, str]] = {
    "file-not-found": {"top.nsa": 'use "missing.nsa"\n'},
    "not-a-file": {"top.nsa": 'use "folder"\n', "folder/x.nsa": _NEAR},
    "use-outside": {"top.nsa": 'use "../other.nsa"\n'},
    "bad-use-path": {"top.nsa": 'use "/etc/passwd"\nuse ""\n'},
    "use-cycle": {"top.nsa": 'use "a.nsa"\n', "a.nsa": 'use "sub/b.nsa"\n', "sub/b.nsa": 'use "../a.nsa"\n'},
    "use-too-deep": {"top.nsa": 'use "f0.nsa"\n', **{f"f{n}.nsa": f'use "f{n + 1}.nsa"\n' for n in range(MAX_USE_DEPTH + 1)}},
    "too-many-files": {
        "top.nsa": "".join(f'use "f{n}.nsa"\n' for n in range(MAX_FILES)),
        **{f"f{n}.nsa": f"relation r{n} = causal\n" for n in range(MAX_FILES)},
    },
    "duplicate-declaration-files": {"top.nsa": f'use "a.nsa"\n{_NEAR}', "a.nsa": _NEAR},
    "unknown-name-files": {"top.nsa": f'use "a.nsa"\n{_GOOD}', "a.nsa": "relation neat = windw(4)\n"},
    "unreadable-file": {"top.nsa": 'use "loop.nsa"\n'},
    "use-in-text": {},
}


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", FILE_CASES)
def test_the_message_is_the_golden_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, FILE_CASES[name])
    (tmp_path / "loop.nsa").symlink_to("loop.nsa")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError) as caught:
        load_spec("top.nsa" if FILE_CASES[name] else 'use "a.nsa"\n')
    assert name.startswith(caught.value.diagnostics[0].code)
    check_golden(f"diagnostics/{name}.txt", str(caught.value))


def test_used_files_are_found_beside_the_user_and_once(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "top.nsa": f'use "sub/a.nsa"\nuse "sub/b.nsa"\n{_GOOD}',
            "sub/a.nsa": f'use "b.nsa"\n{_NEAR}',
            "sub/b.nsa": "relation far = causal - near\n",
        },
    )
    spec = load_spec(tmp_path / "top.nsa")
    assert spec.relations == ("far", "near")
    assert set(spec.sources) == {"<prelude>", *(str(tmp_path / each) for each in ("top.nsa", "sub/a.nsa", "sub/b.nsa"))}


def test_text_bytes_and_path_agree(tmp_path: Path) -> None:
    text = _NEAR + _GOOD
    (tmp_path / "p.nsa").write_text(text)
    made = [load_spec(text), load_spec(text.encode()), load_spec(str(tmp_path / "p.nsa")), load_spec(tmp_path / "p.nsa")]
    assert len({repr(each.pattern("p")) for each in made}) == 1


@pytest.mark.parametrize("path", ["missing.nsa", "", "nul\0byte", "/dev/null", "/dev/zero", "."])
def test_what_is_no_file_is_a_diagnostic(path: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.diagnostics[0].code in ("file-not-found", "not-a-file")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nsa")
    with pytest.raises(SpecError, match="not-a-file"):
        load_spec(tmp_path / "pipe.nsa")


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    _write(inside, {"top.nsa": 'use "link.nsa"\nuse "folder/secret.nsa"\n'})
    _write(tmp_path, {"secret.nsa": _NEAR})
    (inside / "link.nsa").symlink_to(tmp_path / "secret.nsa")
    (inside / "folder").symlink_to(tmp_path)
    with pytest.raises(SpecError) as caught:
        load_spec(inside / "top.nsa")
    assert [each.code for each in caught.value.diagnostics] == ["use-outside", "use-outside"]


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    _write(tmp_path, {"top.nsa": f'use "link.nsa"\n{_GOOD}', "real.nsa": _NEAR})
    (tmp_path / "link.nsa").symlink_to("real.nsa")
    assert load_spec(tmp_path / "top.nsa").relations == ("near",)


def test_errors_of_all_files_are_reported(tmp_path: Path) -> None:
    _write(tmp_path, {"top.nsa": 'use "a.nsa"\nuse "b.nsa"\npattern p {\n', "a.nsa": "relation near = \n", "b.nsa": "relation = causal\n"})
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.nsa")
    alone = len(caught.value.diagnostics)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "top.nsa")
    assert len(caught.value.diagnostics) >= alone


def test_an_oversized_file_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "big.nsa", "wb") as file:
        file.truncate(1 << 36)
    with pytest.raises(SpecError, match="spec-too-large"):
        load_spec(tmp_path / "big.nsa")
