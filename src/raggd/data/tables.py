"""The four public tables of the boundary experiments: local folder, or fetched and checked by hash.

A table is known by the hash of its *values* (ten significant digits, rows in order), not of an
archive: the same numbers from a CSV, a zip or a loader are the same table.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raggd.files import cache_folder, open_text, reason_of, write_text
from raggd.records import RaggdError, require_known

Values = NDArray[np.float64]
_TIMEOUT_SECONDS = 60
_WORDS = {"male": "1", "female": "0"}


@dataclass(frozen=True, slots=True)
class DataTable:
    """Features (rows, d) with their names, and the target (rows,)."""

    columns: tuple[str, ...]
    x: Values
    y: Values


@dataclass(frozen=True, slots=True)
class TableSource:
    """Where a table comes from."""

    file: str
    target: str
    sha256: str  # of its values (`values_hash`)
    home: str
    url: str = ""  # empty where there is no public home without an account
    unpack: Callable[[bytes], list[list[str]]] | None = None  # header and rows of what it returns
    dropped: tuple[str, ...] = ()  # columns that are no features


def _split(text: str, delimiter: str = ",") -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]


def _unpack_california(data: bytes) -> list[list[str]]:
    """Return the table; StatLib's archive holds totals where it has averages per household."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        member = archive.extractfile("CaliforniaHousing/cal_housing.data")
        assert member is not None
        raw = np.array(_split(member.read().decode()), dtype=np.float64)
    longitude, latitude, age, rooms, bedrooms, people, homes, income, value = raw.T
    columns = (
        income, age, rooms / homes, bedrooms / homes, people, people / homes,
        latitude, longitude, value / 1e5,
    )  # fmt: skip
    names = "MedInc HouseAge AveRooms AveBedrms Population AveOccup Latitude Longitude MedHouseVal"
    return [names.split(), *([repr(float(v)) for v in row] for row in np.stack(columns, 1))]


def _unpack_zip(member: str, delimiter: str, data: bytes) -> list[list[str]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return _split(archive.read(member).decode(), delimiter)


SOURCES: dict[str, TableSource] = {
    "california": TableSource(
        "california_housing.csv",
        "MedHouseVal",
        "f64ea3855a6ea650d9205b90067d261ace1802a50aea9363c4e990a5aa8ec381",
        "scikit-learn's fetch_california_housing",
        "https://ndownloader.figshare.com/files/5976036",
        _unpack_california,
    ),
    "bike": TableSource(
        "bike_sharing_hour.csv",
        "cnt",
        "e1ff53e6926f1354fe01c0a5fc0705ba394fa52c13c2243321123af61c1ae5f5",
        "UCI Bike Sharing, hour.csv",
        "https://archive.ics.uci.edu/static/public/275/bike+sharing+dataset.zip",
        partial(_unpack_zip, "hour.csv", ","),
        dropped=("instant", "dteday"),
    ),
    "wine": TableSource(
        "winequality_white.csv",
        "quality",
        "f87ca7c8f0cb60520204bdcaee4be734b2aedd8e373690614ab477c07c52a0df",
        "UCI Wine Quality, winequality-white.csv",
        "https://archive.ics.uci.edu/static/public/186/wine+quality.zip",
        partial(_unpack_zip, "winequality-white.csv", ";"),
    ),
    "calories": TableSource(
        "calorie_expenditure.csv",
        "Calories",
        "46f176cec8a9e0fec4e8d32f9a1b67d0eccc89d47d3ff1c198be780b31df71c5",
        "Kaggle, fmendes/fmendesdat263xdemos: exercise.csv joined with calories.csv on User_ID",
        dropped=("User_ID",),
    ),
}
TABLES = tuple(SOURCES)


def values_hash(x: Values, y: Values) -> str:
    """Return the SHA-256 of all values with ten significant digits, the target last."""
    text = io.StringIO()
    np.savetxt(text, np.column_stack([x, y]), fmt="%.10g", delimiter=",")
    return hashlib.sha256(text.getvalue().encode()).hexdigest()


def to_table(name: str, rows: Sequence[Sequence[str]]) -> DataTable:
    """Return the table of a header and rows, less what is no feature; other values are refused."""
    source = SOURCES[name]
    try:
        header = [column.strip() for column in rows[0]]
        kept = [c for c in header if c not in {*source.dropped, source.target}]
        places = [header.index(column) for column in (*kept, source.target)]
        cells = [[row[place].strip().lower() for place in places] for row in rows[1:]]
        values = np.array([[_WORDS.get(c, c) for c in row] for row in cells], dtype=np.float64)
        x, y = values[:, :-1], values[:, -1]
        right = values_hash(x, y) == source.sha256
    except (IndexError, ValueError):
        right = False
    if not right:
        raise RaggdError(
            f"table '{name}': its columns or values are not those of {source.home}. It was changed "
            "or cut, or is another table; get it again."
        )
    return DataTable(tuple(kept), x, y)


def _read(path: Path) -> list[list[str]]:
    try:
        with open_text(path) as opened:
            return _split(opened.read())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RaggdError(f"cannot read the table {path}: {reason_of(error)}.") from error


def _download(name: str) -> list[list[str]]:
    source, problem = SOURCES[name], "its home asks for an account"
    try:
        if source.unpack is not None:
            with urllib.request.urlopen(source.url, timeout=_TIMEOUT_SECONDS) as answer:
                data: bytes = answer.read()
            return source.unpack(data)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, KeyError) as error:
        problem = f"it could not be fetched from {source.url} ({error})"
    raise RaggdError(
        f"table '{name}' is not there, and {problem}: get it elsewhere ({source.home}) as "
        f"{source.file}, and name its folder with --tables, or with RAGGD_DATA the folder above "
        "'tabular'."
    )


def _local(file: str, given: Path | None) -> Path | None:
    # in the given folder, else in RAGGD_DATA and the cache
    data = os.environ.get("RAGGD_DATA")
    usual = [*([Path(data) / "tabular"] if data else []), cache_folder() / "tables"]
    folders = usual if given is None else [given, given / "tabular"]
    found = (folder / (file + end) for folder in folders for end in ("", ".gz"))
    return next(filter(Path.is_file, found), None)


def load_table(name: str, folder: Path | None = None) -> DataTable:
    """Load a table: from a folder of CSV files (also ``.gz``), or fetch it from its public home.

    Without `folder`, ``RAGGD_DATA/tabular`` and the cache are looked into.

    Raises:
        RaggdError: the folder does not hold it, it cannot be fetched, or its values differ.
    """
    require_known("table", name, TABLES)
    source = SOURCES[name]
    path = _local(source.file, folder)
    if path is not None:
        return to_table(name, _read(path))
    if folder is not None:
        raise RaggdError(
            f"no {source.file} (or .gz) in {folder}: put it there ({source.home}), or leave the "
            "folder out to fetch what is public."
        )
    rows = _download(name)
    table = to_table(name, rows)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(cache_folder() / "tables" / source.file, text.getvalue())
    return table
