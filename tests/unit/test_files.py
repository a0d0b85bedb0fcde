"""The boundary to files: what is wrong in one is one line that names file, line and field."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from ares_stream.cli.bundle_import import _templates
from ares_stream.errors import (
    AresError,
    DecodeError,
    FileFormatError,
    InputError,
    RepairError,
    ResourceError,
    SettingsError,
)
from ares_stream.files import (
    check_outputs,
    checked_api_key,
    open_lines,
    parse_json,
    parse_yaml,
    read_api_key,
    read_json,
    read_rows,
    read_secret,
    read_text,
    read_yaml,
    write_whole,
    written_folder,
    written_whole,
)
from ares_stream.interchange.label_studio import read_annotations
from ares_stream.probes.plan import CampaignFile, load_campaign
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import load_mapping
from ares_stream.services.settings import load_settings


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    size: int = Field(1, ge=0)


def file_of(folder: Path, content: bytes, name: str = "rows.jsonl") -> Path:
    file = folder / name
    file.write_bytes(content)
    return file


GOOD = b'{"name": "a"}\n'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"name": "\\ud83d"}', "not JSON: "),
        (b'{"name": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON: recursion limit"),
        (b'{"name": "a"', "not JSON: EOF"),
        (b'{"name": "a\xff"}', "not JSON: "),
        (b'{"name": "a", "size": 1e999}', "size: "),
        (b'{"name": 3}', "name: expected text"),
        (b'{"nam": "a"}', "nam: no such field; is name meant?"),
        (b'{"name": "a", "size": -1}', "size: expected at least 0"),
        (b"[1]", "expected an object of names and values"),
    ],
)
def test_a_bad_row_is_named_with_line_and_field(tmp_path: Path, bad: bytes, reason: str) -> None:
    file = file_of(tmp_path, GOOD + b"\n" + bad + b"\n")
    with pytest.raises(FileFormatError) as caught:
        list(read_rows(file, Row))
    assert (caught.value.line, caught.value.path) == (3, str(file))
    assert caught.value.reason.startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_read_over(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = file_of(tmp_path, pack(b"\xef\xbb\xbf" + GOOD))
    assert [row.name for _, row in read_rows(file, Row)] == ["a"]


def test_a_file_of_a_mark_alone_has_no_row(tmp_path: Path) -> None:
    assert list(read_rows(file_of(tmp_path, b"\xef\xbb\xbf"), Row)) == []


def test_a_byte_order_mark_in_front_of_any_line_is_read_over(tmp_path: Path) -> None:
    file = file_of(tmp_path, (b"\xef\xbb\xbf" + GOOD) * 2 + GOOD)
    assert [number for number, _ in read_rows(file, Row)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x28\xb5\x2f\xfd\x00", "zstd; decompress it first, such as `zstd -dc FILE"),
        (b"BZh91AY&SY", "bzip2; decompress it first"),
        (b"\xfd7zXZ\x00", "xz; decompress it first"),
        (b"PK\x03\x04\x14\x00", "a zip archive; unpack it first"),
        (b"PAR1\x15\x04", "Parquet; write its rows as JSON lines first"),
        (GOOD.decode().encode("utf-16-le"), "UTF-16 or UTF-32; write the file as UTF-8"),
        (GOOD.decode().encode("utf-32-be"), "UTF-16 or UTF-32; write the file as UTF-8"),
        (b'[\n  {"name": "a"}\n]\n', "begins a JSON document over several lines"),
        (b'{\r\n  "name": "a"\r\n}\r\n', "begins a JSON document over several lines"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_file_that_is_no_json_lines_is_told_with_what_to_do(
    content: bytes, reason: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    with pytest.raises(FileFormatError) as caught:
        list(read_rows(file_of(tmp_path, pack(content)), Row))
    assert (caught.value.line, caught.value.reason[: len(reason)]) == (1, reason)


def test_a_line_that_is_cut_short_is_no_document(tmp_path: Path) -> None:
    for content in (b"{", b"[", GOOD + b"{\n" + GOOD):
        with pytest.raises(FileFormatError, match="not JSON: EOF"):
            list(read_rows(file_of(tmp_path, content), Row))


def test_utf_16_is_named_as_such(tmp_path: Path) -> None:
    file = file_of(tmp_path, GOOD.decode().encode("utf-16"))
    with pytest.raises(FileFormatError, match="UTF-16; write the file as UTF-8"):
        list(read_rows(file, Row))
    with pytest.raises(SettingsError, match="UTF-16"):
        read_text(file)


@pytest.mark.parametrize("part", ["head", "body", "end", "cut"])
@pytest.mark.parametrize("how", ["survey", "rows"])
def test_a_damaged_gzip_file_is_one_line(tmp_path: Path, part: str, how: str) -> None:
    rows = b"".join(b'{"name": "%d"}\n' % number for number in range(5000))
    packed = bytearray(gzip.compress(rows))
    if part == "cut":
        del packed[len(packed) // 2 :]
    else:
        at = {"head": 2, "body": len(packed) // 2, "end": len(packed) - 6}[part]
        packed[at] ^= 0xFF
        packed[at + 1] ^= 0xFF
    file = file_of(tmp_path, bytes(packed))
    read = surveyed if how == "survey" else rows_of
    with pytest.raises(FileFormatError, match=r"^\S+:\d+: (broken gzip|not JSON)"):
        read(file)


def surveyed(file: Path) -> None:
    with open_lines(file) as lines:
        lines.survey()


def lines_of(file: Path) -> None:
    with open_lines(file) as lines:
        list(lines)


def rows_of(file: Path) -> None:
    list(read_rows(file, Row))


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    end, start = os.pipe()
    os.write(start, gzip.compress(GOOD))
    os.close(start)
    try:
        with open_lines(Path(f"/dev/fd/{end}")) as lines:
            assert lines.survey().lines == 1
            assert list(lines) == [(1, GOOD.strip())]
    finally:
        os.close(end)


@pytest.mark.parametrize("how", ["survey", "rows"])
@pytest.mark.parametrize("kind", ["device", "pipe", "zipped pipe", "file"])
def test_a_line_without_an_end_is_an_error_with_its_number(
    kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ares_stream.files.rows.ENDLESS_BYTES", 4 << 20)
    monkeypatch.setattr("ares_stream.files.rows.MAX_LINE_BYTES", 1 << 20)
    content = GOOD + GOOD + bytes(8 << 20)
    number = 1 if kind == "device" else 3
    if kind == "device":
        file = Path("/dev/zero")
    elif kind == "file":
        file = file_of(tmp_path, content)
    else:
        file = tmp_path / "pipe"
        os.mkfifo(file)
        sent = gzip.compress(content) if "zipped" in kind else content

        def send() -> None:
            with contextlib.suppress(BrokenPipeError), file.open("wb") as pipe:
                pipe.write(sent)

        Thread(target=send, daemon=True).start()
    read = surveyed if how == "survey" else lines_of
    with pytest.raises(FileFormatError, match=f":{number}: the line does not end within 4,194,304"):
        read(file)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=9))
def test_json_that_python_writes_is_read_as_python_reads_it(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_one_error(raw: bytes) -> None:
    found: DecodeError | None = None
    try:
        parse_json(raw)
    except DecodeError as error:
        found = error
    if found is not None:
        assert "\n" not in str(found)
        assert found.__context__ is None, "an error that is kept must not keep what it was made of"


YAML_FAULTS = {
    "key twice": ("a: 1\nb: {c: 1,\n c: 2}", 3, "c is named twice"),
    "no such day": ("a: 1\nb: 2026-13-45", 2, "month must be in 1..12"),
    "no such hour": ("a: 2026-01-31 25:61:00", 1, "hour must be in 0..23"),
    "half of a pair": ('a: "\\ud83d"', 1, "half of a surrogate pair"),
    "an endless number": ("a: " + "1" * 5000, 1, "Exceeds the limit"),
    "a cycle": ("a: &a [*a]", 1, "an alias inside of what it stands for"),
    "another tag": ("a: !!bool maybe", 1, "not a value of the tag bool"),
    "a time that is none": ("a: !!timestamp now", 1, "not a value of the tag timestamp"),
    "an object": ("a: !!python/object/apply:os.system [x]", 1, "could not determine"),
    "open": ("a: [", 1, "expected the node content"),
    "a bomb": (
        "a: &a [" + "1," * 99 + "]\nb: &b [" + "*a," * 99 + "]\nc: &c [" + "*b," * 99
        + "]\nd: [" + "*c," * 9 + "]",
        4, "more than 1,000,000 values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", YAML_FAULTS)
def test_yaml_that_is_not_what_it_seems_is_refused_with_its_line(name: str) -> None:
    text, line, reason = YAML_FAULTS[name]
    with pytest.raises(FileFormatError) as caught:
        parse_yaml(text, "file.yaml")
    assert caught.value.line == line
    assert caught.value.reason.startswith(f"not YAML: {reason}")


@pytest.mark.parametrize("text", ["[" * 4000, "{a: " * 4000, "- " * 4000])
def test_yaml_that_is_nested_too_deep_is_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match="nested too deep"):
        parse_yaml(text, "file.yaml")


def test_ordinary_yaml_is_read_as_ever() -> None:
    text = (
        'a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: "\\ud83d\\ude00"\nd: [1, 2.5, yes, 2026-01-31]'
    )
    read = parse_yaml(text, "file.yaml").content
    assert read["b"] == {"x": 1, "y": 3}
    assert read["c"] == "😀"
    assert read["d"][:3] == [1, 2.5, True]


@pytest.mark.parametrize("text", ["x: 2026-13-45", "[" * 4000, "a: 1\na: 2", "\ud83d", "\x00"])
@pytest.mark.parametrize("read", [load_campaign, load_mapping, load_settings])
def test_every_reader_of_settings_ends_with_2_on_bad_yaml(
    tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    file = file_of(tmp_path, text.encode(errors="surrogatepass"), "x.yaml")
    with pytest.raises(AresError) as caught:
        read(file)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{file}:")
    assert "\n" not in str(caught.value)


def test_the_caller_names_the_class_of_the_error(tmp_path: Path) -> None:
    with pytest.raises(RepairError, match="nowhere: cannot be read: No such file"):
        read_json(tmp_path / "nowhere", Row, error=RepairError)
    file = file_of(tmp_path, b'{"name": "a", "size": "x"}', "a.json")
    with pytest.raises(RepairError, match=r"a\.json: size: expected a whole number"):
        read_json(file, Row, error=RepairError)
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path, Row)


def test_a_typo_in_a_record_that_takes_unknown_fields_is_told_beside_what_is_missing() -> None:
    with pytest.raises(DecodeError, match="messages: missing; it has mesages, is that meant"):
        Interaction.decode(
            b'{"id": "1", "occurred_at": "2026-01-01T00:00:00Z", "mesages": [], "response": "x",'
            b'"policy": {"name": "a", "version": "1"}}'
        )


def test_a_typo_deep_in_a_file_names_the_field_that_was_meant(tmp_path: Path) -> None:
    target = "target: {endpoint: {url: 'http://x', model: m, max_token: 3}}"
    file = file_of(tmp_path, f"name: x\n{target}\n".encode(), "c.yaml")
    with pytest.raises(
        SettingsError, match=r"target\.endpoint\.max_token: no such field; is max_tokens meant\?$"
    ):
        read_yaml(file, CampaignFile)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("sk-ab–cd".encode(), "character 6 is U\\+2013, which a key cannot hold"),
        (b"sk ab", "character 3 is U\\+0020"),
        (b"sk\xff", "not UTF-8"),
        (b"  \n", "is empty"),
        (b"a\nb\n", "holds several lines"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = file_of(tmp_path, content, "key")
    with pytest.raises(SettingsError, match=rf"^target\.api_key_file: .*{reason}") as caught:
        read_api_key("target.api_key_file", file)
    assert "sk" not in str(caught.value).replace(str(tmp_path), "")


def test_a_key_is_read_without_its_line_end_and_mark(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"\xef\xbb\xbfsk-1\r\n", "key")
    assert read_api_key("x", file) == "sk-1"
    assert checked_api_key("x", "sk-1") == "sk-1"
    password = file_of(tmp_path, " pässword \n".encode(), "password")
    secret = read_secret("x", password)
    assert secret.get_secret_value() == " pässword "
    assert "pässword" not in repr(secret)


def test_a_file_is_written_through_a_link_and_into_a_device(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with written_whole(link) as stream:
        stream.write(b"new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    with written_whole(Path("/dev/null")) as stream:
        stream.write(b"gone")
    assert not Path("/dev/null").is_file()
    assert sorted(tmp_path.iterdir()) == [link, real]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    file = file_of(tmp_path, b"old")
    with pytest.raises(ResourceError, match="cannot be written: No space left"):  # noqa: SIM117
        with written_whole(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]
    if Path("/dev/full").exists():
        with pytest.raises(ResourceError, match="/dev/full: cannot be written"):
            write_whole(Path("/dev/full"), b"x" * 100)


def test_what_a_run_keeps_is_its_owners_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "plan.json", b"{}")
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o600


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(ValueError, match="half"), written_folder(out) as staging:  # noqa: PT012
        (staging / "a").write_text("1")
        raise ValueError("half")
    assert list(out.parent.iterdir()) == []
    with written_folder(out) as staging:
        (staging / "a").write_text("1")
    assert [name.name for name in out.iterdir()] == ["a"]
    with (
        pytest.raises(SettingsError, match="out: cannot be written"),
        written_folder(out) as staging,
    ):
        (staging / "b").write_text("1")
    assert [name.name for name in out.iterdir()] == ["a"]


Spoil = Callable[[Path], tuple[dict[str, Path | None], dict[str, Path | None]]]


def same_path(folder: Path) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    return {"--verdicts": folder / "in.jsonl"}, {"FILE": folder / "in.jsonl"}


def through_dots(folder: Path) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    return {"--verdicts": folder / "models" / ".." / "in.jsonl"}, {"FILE": folder / "in.jsonl"}


def through_a_link(folder: Path) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    (folder / "link").symlink_to(folder / "in.jsonl")
    return {"--verdicts": folder / "link"}, {"FILE": folder / "in.jsonl"}


def through_a_hard_link(folder: Path) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    (folder / "hard").hardlink_to(folder / "in.jsonl")
    return {"--verdicts": folder / "hard"}, {"FILE": folder / "in.jsonl"}


def through_a_linked_folder(folder: Path) -> tuple[dict[str, Path | None], dict[str, Path | None]]:
    (folder / "other").symlink_to(folder)
    new = {"--verdicts": folder / "new", "--report": folder / "other" / "new"}
    return {**new}, {"FILE": folder / "in.jsonl"}


@pytest.mark.parametrize(
    "spoil",
    [same_path, through_dots, through_a_link, through_a_hard_link, through_a_linked_folder],
)
def test_an_output_that_is_another_file_of_the_command_is_refused(
    tmp_path: Path, spoil: Spoil
) -> None:
    file_of(tmp_path, GOOD, "in.jsonl")
    (tmp_path / "models").mkdir()
    outputs, inputs = spoil(tmp_path)
    with pytest.raises(SettingsError, match="as well; name another file"):
        check_outputs(outputs, inputs)


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    file = file_of(tmp_path, GOOD, "in.jsonl")
    bundle: dict[str, Path | None] = {"--harm": tmp_path / "models"}
    for path, inputs, reason in (
        (tmp_path, {}, "a folder, expected a file"),
        (tmp_path / "models" / "model.onnx", bundle, "lies in --harm"),
        (file / "x", {}, "cannot be written: Not a directory"),
        (tmp_path / ("x" * 300), {}, "cannot be written"),
        (Path("/proc/nowhere/x"), {}, "cannot be written"),
        (Path("-"), {}, "standard output is not possible here"),
    ):
        with pytest.raises(SettingsError, match=reason):
            check_outputs({"--report": path}, inputs)
    check_outputs({"--json": Path("-"), "--report": None}, {"FILE": Path("-")}, stdout=["--json"])
    check_outputs({"--json": Path("/dev/null"), "--report": Path("/dev/null")}, {})
    check_outputs({"--report": tmp_path / "new" / "deep" / "page.html"}, {"FILE": file})
    assert not (tmp_path / "new").exists()


def endless(tmp_path: Path, name: str) -> Path:
    (tmp_path / name).symlink_to("/dev/zero")
    return tmp_path / name


def test_an_export_without_an_end_is_refused_by_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ares_stream.interchange.label_studio.MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"export\.json: larger than 1,048,576 bytes"):
        read_annotations(endless(tmp_path, "export.json"), {})


def test_a_template_without_an_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_text, "__kwdefaults__", {"error": SettingsError, "limit": 1 << 20})
    with pytest.raises(SettingsError, match="template: larger than 1,048,576 bytes"):
        _templates(endless(tmp_path, "template"), None)
