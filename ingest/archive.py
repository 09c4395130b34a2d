"""A GTFS zip as tables of text, and the list of complaints about it. Nothing is ever unpacked to disk.

Promised: whatever bytes are given, the answer is rows or complaints with file and line, within the limits below. Refused outright: what is
no zip, members over the limits or of names that would leave a folder, encryption. A feed inside one folder of the zip is accepted with a
warning. Text is UTF-8, a byte order mark allowed (GTFS reference, "File requirements").
"""

from __future__ import annotations

import _csv
import csv
import hashlib
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from engine.tracking.timetable import parse_date

ZIP_MAX_BYTES: Final = 256 << 20  # of the zip itself; the largest national feeds have 200 MB
MEMBERS_MAX: Final = 1_000  # files in the zip; GTFS knows about 30
MEMBER_MAX_BYTES: Final = 512 << 20  # one file, uncompressed
TOTAL_MAX_BYTES: Final = 1 << 30  # all files that are read, uncompressed
RATIO_MAX: Final = 200  # uncompressed over compressed, above RATIO_FROM_BYTES; stop_times.txt has 5 to 12
RATIO_FROM_BYTES: Final = 1 << 20
FIELD_MAX_CHARS: Final = 65_536  # one value
COMPLAINTS_MAX: Final = 1_000  # listed of each severity; the others are counted

ERROR, WARNING = "ERROR", "WARNING"

# All that zipfile and its decompressors were seen to raise, or document, for damaged bytes (bytes flipped at random, 24,000 zips).
ZIP_FAULTS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted, or a method that is not implemented
    ValueError,  # a name that is not in its encoding
    LookupError,
    OverflowError,
)


class Complaint(NamedTuple):
    """One fault of the feed. `line` counts from 1 with the header; None: the whole file. `advice` says what to do."""

    severity: str
    code: str
    file: str
    line: int | None
    column: str | None
    value: str | None
    advice: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        column = f" {self.column}" if self.column else ""
        value = f" {self.value!r}" if self.value is not None else ""
        return f"{place}{column}{value}: {self.advice}"

    def as_error(self) -> dict[str, str]:
        """In the form of `EngineError.errors`: pointer is `file:line#column`."""
        pointer = self.file + (f":{self.line}" if self.line is not None else "") + (f"#{self.column}" if self.column else "")
        return {"pointer": pointer, "code": self.code, "detail": str(self)}


class Complaints:
    """All that is wrong with one feed: the first 1,000 of each severity in full, the rest by number."""

    def __init__(self) -> None:
        self.errors: list[Complaint] = []
        self.warnings: list[Complaint] = []
        self.counts: Counter[tuple[str, str]] = Counter()  # (severity, code)

    def error(
        self, code: str, file: str, advice: str, *, line: int | None = None, column: str | None = None, value: str | None = None
    ) -> None:
        """The feed cannot be taken."""
        self._add(self.errors, Complaint(ERROR, code, file, line, column, _short(value), advice))

    def warn(
        self, code: str, file: str, advice: str, *, line: int | None = None, column: str | None = None, value: str | None = None
    ) -> None:
        """The feed can be taken, but somebody should look at this."""
        self._add(self.warnings, Complaint(WARNING, code, file, line, column, _short(value), advice))

    def total(self, severity: str) -> int:
        return sum(number for (kind, _), number in self.counts.items() if kind == severity)

    def _add(self, where: list[Complaint], complaint: Complaint) -> None:
        self.counts[complaint.severity, complaint.code] += 1
        if len(where) < COMPLAINTS_MAX:
            where.append(complaint)


def _short(value: str | None) -> str | None:
    return value if value is None or len(value) <= 80 else value[:77] + "..."


class Table:
    """One file: its columns and its rows of text.

    Iterating gives (line, values) with exactly `width + 1` values a row, the last one an empty string: `place(name)` of a column that the
    file lacks points there, so readers need no special case. Values keep their white space; `place` is for loops over many rows, `records`
    for small files.
    """

    def __init__(self, file: str, header: list[str], reader: _csv.Reader, complaints: Complaints) -> None:
        self._complaints = complaints
        self.torn = False  # a row could not be read: what it would have held must not be called unknown elsewhere
        self.file, self.header, self.width = file, header, len(header)
        self._places = {name: index for index, name in enumerate(header)}
        self._reader = reader

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        reader, width, line = self._reader, self.width, 2
        while True:
            try:
                for row in reader:
                    if len(row) == width and any(row):
                        row.append("")
                        yield line, row
                    elif row and (fitted := self._fitted(line, row)) is not None:
                        yield line, fitted
                    line = reader.line_num + 1
                return
            except csv.Error as fault:
                self.torn = True
                self._complaints.error("BROKEN_ROW", self.file, f"the row cannot be read ({fault}); check its quotes", line=line)
                line = reader.line_num + 1

    def _fitted(self, line: int, row: list[str]) -> list[str] | None:
        if not any(value.strip() for value in row):
            self._complaints.warn("BLANK_ROW", self.file, "a row without any value is skipped", line=line)
            return None
        if len(row) >= self.width and not any(value.strip() for value in row[self.width :]):
            return [*row[: self.width], ""]
        self.torn = True
        advice = f"the row has {len(row)} values, the header {self.width}; a comma is missing or too many"
        self._complaints.error("ROW_LENGTH", self.file, advice, line=line)
        return None

    def has(self, column: str) -> bool:
        return column in self._places

    def place(self, column: str) -> int:
        return self._places.get(column, self.width)

    def complain(self, code: str, advice: str) -> None:
        """An error of the whole file."""
        self._complaints.error(code, self.file, advice)

    def records(self) -> Iterator[Row]:
        """The rows by column name, white space stripped."""
        for line, values in self:
            yield Row(self._complaints, self.file, line, dict(zip(self.header, map(str.strip, values), strict=False)))


class Row:
    """One row of a small file. Reading a value checks it; what is wrong becomes a complaint with its place, and `bad` turns True."""

    __slots__ = ("_complaints", "_values", "bad", "file", "line")

    def __init__(self, complaints: Complaints, file: str, line: int, values: dict[str, str]) -> None:
        self._complaints, self.file, self.line, self._values = complaints, file, line, values
        self.bad = False

    def text(self, column: str) -> str:
        """The value, or an empty string."""
        return self._values.get(column, "")

    def needed(self, column: str) -> str:
        """The value; a complaint where there is none."""
        value = self.text(column)
        if not value:
            self.wrong("MISSING_VALUE", column, "a value is required here")
        return value

    def whole(self, column: str, default: int | None, low: int, high: int) -> int:
        """An integer within [low, high]; the default where the value is empty (None: it is required)."""
        value = self.text(column) if default is not None else self.needed(column)
        if not value:
            return default or 0
        if not value.removeprefix("-").isdecimal() or len(value) > 12 or not low <= int(value) <= high:
            self.wrong("BAD_NUMBER", column, f"a whole number from {low} to {high} is expected")
            return low
        return int(value)

    def degrees(self, column: str, limit: float) -> float:
        """Degrees within [-limit, limit]; required."""
        value = self.needed(column)
        degrees = decimal(value)
        if degrees is None or abs(degrees) > limit:
            if value:
                self.wrong("BAD_COORDINATE", column, f"decimal degrees from {-limit:g} to {limit:g} are expected")
            return 0.0
        return degrees

    def day(self, column: str) -> date:
        """A date, yyyymmdd; required."""
        value = self.needed(column)
        day = parse_date(value)
        if day is None and value:
            self.wrong("BAD_DATE", column, "a date of the form YYYYMMDD is expected")
        return day or date.min

    def refers(self, column: str, known: Container[str] | None, file: str) -> str:
        """An id that `known` must hold (None: the other file could not be read, and one complaint about that is enough)."""
        value = self.needed(column)
        if value and known is not None and value not in known:
            self.wrong("UNKNOWN_REFERENCE", column, f"{file} has no such id")
        return value

    def wrong(self, code: str, column: str | None, advice: str) -> None:
        """An error of this row."""
        self.bad = True
        self._complaints.error(code, self.file, advice, line=self.line, column=column, value=self.text(column) if column else None)

    def odd(self, code: str, column: str | None, advice: str) -> None:
        """A warning about this row."""
        self._complaints.warn(code, self.file, advice, line=self.line, column=column, value=self.text(column) if column else None)


def decimal(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Archive:
    """An opened feed. Use `open_archive`; `close` gives the file back."""

    def __init__(self, zipped: zipfile.ZipFile, folder: str, sha256: str, complaints: Complaints) -> None:
        self._zip, self._folder, self.sha256, self._complaints = zipped, folder, sha256, complaints
        self._names = {name.removeprefix(folder) for name in zipped.namelist() if name.startswith(folder)}

    def close(self) -> None:
        self._zip.close()

    def has(self, file: str) -> bool:
        return file in self._names

    def table(self, file: str, required: tuple[str, ...]) -> Table | None:
        """The file's rows, or None with a complaint where it cannot be read or lacks a required column."""
        data = self._read(file)
        if data is None:
            return None
        reader = csv.reader(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline=""), strict=True)
        csv.field_size_limit(FIELD_MAX_CHARS)  # of the whole process; recorded fixes have no value near it
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as fault:
            self._complaints.error("BROKEN_ROW", file, f"the header cannot be read: {fault}", line=1)
            return None
        while header and not header[-1]:
            header.pop()  # a comma too many at the line's end
        if not header:
            self._complaints.error("EMPTY_FILE", file, "the file is empty; a header line is the least it needs")
            return None
        twice = [name for name, number in Counter(header).items() if number > 1]
        missing = [name for name in required if name not in header]
        for name in twice:
            self._complaints.error("DUPLICATE_COLUMN", file, "the column stands twice in the header", line=1, column=name)
        for name in missing:
            self._complaints.error("MISSING_COLUMN", file, "a required column is missing", line=1, column=name)
        return None if twice or missing else Table(file, header, reader, self._complaints)

    def _read(self, file: str) -> bytes | None:
        """The file's bytes, once they are known to be UTF-8 without NUL; else a complaint."""
        try:
            data = self._zip.read(self._folder + file)
        except ZIP_FAULTS as fault:
            self._complaints.error("UNREADABLE_FILE", file, f"the zip does not give it back ({fault}); make the zip again")
            return None
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            self._complaints.error("NOT_UTF8", file, "the file is UTF-16; save it as UTF-8", line=1)
            return None
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as fault:
            at, byte = data.count(b"\n", 0, fault.start) + 1, f"byte 0x{data[fault.start]:02x}"
            advice = "the file is not UTF-8 (perhaps Latin-1 or Windows-1252); save it as UTF-8"
            self._complaints.error("NOT_UTF8", file, advice, line=at, value=byte)
            return None
        if b"\0" in data:
            at = data.count(b"\n", 0, data.index(b"\0")) + 1
            self._complaints.error("NUL_BYTE", file, "a NUL byte stands in the text; the file is damaged", line=at)
            return None
        return data


def open_archive(path: Path, wanted: tuple[str, ...], complaints: Complaints) -> Archive | None:
    """The feed at `path`, or None with complaints. `wanted`: names of the files that make it a feed, for finding its folder."""
    try:
        size = path.stat().st_size
        if not path.is_file() or size > ZIP_MAX_BYTES:
            complaints.error(
                "TOO_LARGE" if path.is_file() else "NOT_A_ZIP", path.name, f"give one zip file of at most {ZIP_MAX_BYTES >> 20} MiB"
            )
            return None
        with path.open("rb") as handle:
            sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
        zipped = zipfile.ZipFile(path)
    except ZIP_FAULTS as fault:
        complaints.error("NOT_A_ZIP", path.name, f"the file cannot be opened as a zip: {getattr(fault, 'strerror', None) or fault}")
        return None
    folder = _folder_of(zipped, wanted)
    if not _members_fit(zipped, {folder + name for name in wanted}, path.name, complaints):
        zipped.close()
        return None
    if folder:
        complaints.warn("INSIDE_FOLDER", path.name, "the files stand in a folder of the zip; GTFS wants them at its root", value=folder)
    return Archive(zipped, folder, sha256, complaints)


def _folder_of(zipped: zipfile.ZipFile, wanted: tuple[str, ...]) -> str:
    """'' where a wanted file stands at the root, else the one folder that holds most of them (Finder's __MACOSX aside)."""
    names = [name for name in zipped.namelist() if not name.startswith("__MACOSX/")]
    if any(name in wanted for name in names):
        return ""
    folders = Counter(name.rpartition("/")[0] + "/" for name in names if name.rpartition("/")[2] in wanted)
    return min(folders, key=lambda folder: (-folders[folder], len(folder), folder)) if folders else ""


def _members_fit(zipped: zipfile.ZipFile, read: set[str], file: str, complaints: Complaints) -> bool:
    """Limits before a byte is unpacked; zipfile itself stops at the declared size, so a size that lies ends in a bad checksum."""
    members, before = zipped.infolist(), complaints.total(ERROR)
    if len(members) > MEMBERS_MAX:
        complaints.error("ZIP_BOMB", file, f"the zip has {len(members)} members; at most {MEMBERS_MAX} are accepted")
    for name, number in Counter(member.filename for member in members).items():
        if number > 1:
            complaints.error("DUPLICATE_MEMBER", file, "the name stands twice in the zip", value=name)
    for member in members:
        where, name = PurePosixPath(member.filename), member.orig_filename  # orig: zipfile cuts names at a NUL
        if where.is_absolute() or ".." in where.parts or "\\" in name or "\0" in name or name[1:2] == ":":
            complaints.error("UNSAFE_NAME", file, "the name leaves the zip's own folder", value=member.orig_filename)
        if member.flag_bits & 0x1:
            complaints.error("ENCRYPTED", file, "the member is encrypted; send it without a password", value=member.filename)
        large = member.file_size > RATIO_FROM_BYTES
        if member.file_size > MEMBER_MAX_BYTES or (large and member.file_size > RATIO_MAX * max(1, member.compress_size)):
            advice = f"{member.file_size} bytes out of {member.compress_size}: over {MEMBER_MAX_BYTES >> 20} MiB or {RATIO_MAX} times"
            complaints.error("ZIP_BOMB", file, advice, value=member.filename)
    total = sum(member.file_size for member in members if member.filename in read)
    if total > TOTAL_MAX_BYTES:
        complaints.error("ZIP_BOMB", file, f"{total} bytes uncompressed; at most {TOTAL_MAX_BYTES >> 20} MiB are accepted")
    return complaints.total(ERROR) == before
