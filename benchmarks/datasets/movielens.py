"""MovieLens 1M and 100K: a rating of 4 or more counts as a click.

Both are given the same nine categorical fields (user, movie, gender, age, occupation, first three characters of the
zip code, set of genres, first genre, year of release) and two dense ones (year of release, number of genres). The
timestamp is not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afm_fx.errors import FileFormatError
from benchmarks.datasets.raw import RawTable, find_file, hash_string, read_lines, stream_delimited

CLICK_RATING = 4
ENCODING = "latin-1"
ZIP_CHARACTERS = 3
YEAR_IN_TITLE = re.compile(r"\((\d{4})\)\s*$")
USER_FIELDS = ("gender", "age", "occupation", "zip")
MOVIE_FIELDS = ("genres", "first_genre", "year")
GENRE_FLAGS_100K = 19


@dataclass(frozen=True)
class _Movie:
    genres: tuple[str, ...]
    year: str

    def fields(self) -> tuple[str, ...]:
        return "|".join(self.genres), self.genres[0] if self.genres else "", self.year

    def numbers(self) -> tuple[float, float]:
        return float(self.year) if self.year else float("nan"), float(len(self.genres))


def read_movielens_1m(path: Path, max_rows: int | None = None) -> RawTable:
    """Reads ``ratings.dat`` (or ``ratings.csv.gz``: user_id, movie_id, rating), ``users.dat`` and ``movies.dat``.

    Raises:
        FileFormatError: a file is missing, damaged or of another format, or a rating names an unknown user or movie.
    """
    ratings_file = find_file(path, ("ratings.dat", "ratings.csv.gz", "ratings.csv"))
    users = {row[0]: row[1:] for row in read_lines(path / "users.dat", "::", 5, encoding=ENCODING)}
    movies = {}
    for movie, title, genres in read_lines(path / "movies.dat", "::", 3, encoding=ENCODING):
        year = YEAR_IN_TITLE.search(title)
        movies[movie] = _Movie(tuple(genres.split("|")), year.group(1) if year else "")
    if ratings_file.suffix == ".dat":
        ratings = _ratings_from_lines(read_lines(ratings_file, "::", 4, encoding=ENCODING), ratings_file, max_rows)
    else:
        types = dict.fromkeys(("user_id", "movie_id", "rating"), pa.int64())
        batches = stream_delimited(ratings_file, types, delimiter=",", header=True, max_rows=max_rows)
        ratings = np.concatenate([np.stack([column.to_numpy() for column in batch.columns], 1) for batch in batches])
    return _join(ratings, users, movies, ratings_file)


def read_movielens_100k(path: Path, max_rows: int | None = None) -> RawTable:
    """Reads ``u.data``, ``u.user``, ``u.item`` and ``u.genre``.

    Raises:
        FileFormatError: a file is missing, damaged or of another format, or a rating names an unknown user or movie.
    """
    users = {}
    for user, age, gender, occupation, zip_code in read_lines(path / "u.user", "|", 5, encoding=ENCODING):
        users[user] = [gender, age, occupation, zip_code]
    names = [row[0] for row in _genre_lines(path / "u.genre")]
    movies = {}
    for row in read_lines(path / "u.item", "|", 5 + GENRE_FLAGS_100K, encoding=ENCODING):
        flags = row[5:]
        genres = tuple(name for name, flag in zip(names, flags, strict=True) if flag == "1")
        movies[row[0]] = _Movie(genres, row[2][-4:])
    file = path / "u.data"
    return _join(_ratings_from_lines(read_lines(file, "\t", 4), file, max_rows), users, movies, file)


def _genre_lines(path: Path) -> list[list[str]]:
    """Rows of (name, number); the published file ends with an empty line, which is dropped."""
    if not path.is_file():
        raise FileFormatError(f"'{path}' does not exist")
    rows = [line.split("|") for line in path.read_text(ENCODING).splitlines() if line]
    if [row[1:] for row in rows] != [[str(number)] for number in range(GENRE_FLAGS_100K)]:
        raise FileFormatError(f"'{path}' should name {GENRE_FLAGS_100K} genres, numbered in order")
    return rows


def _ratings_from_lines(rows: Sequence[Sequence[str]], path: Path, max_rows: int | None) -> NDArray[np.int64]:
    """User, movie and rating, [rows, 3]."""
    try:
        return np.array([row[:3] for row in rows[:max_rows]]).astype(np.int64)
    except ValueError as error:
        raise FileFormatError(f"'{path}' has a cell that is no whole number: {error}") from error


def _join(ratings: NDArray[np.int64], users: dict[str, list[str]], movies: dict[str, _Movie], path: Path) -> RawTable:
    user_ids, user_rows = np.unique(ratings[:, 0], return_inverse=True)
    movie_ids, movie_rows = np.unique(ratings[:, 1], return_inverse=True)
    for kind, ids, known in (("user", user_ids, users), ("movie", movie_ids, movies)):
        unknown = [str(number) for number in ids if str(number) not in known]
        if unknown:
            raise FileFormatError(f"'{path}' rates as {kind} {unknown[0]}, which the {kind}s' file does not list")
    categorical = {
        "user_id": _keys([str(user) for user in user_ids])[user_rows],
        "movie_id": _keys([str(movie) for movie in movie_ids])[movie_rows],
    }
    user_cells = [[*users[str(user)][:3], users[str(user)][3][:ZIP_CHARACTERS]] for user in user_ids]
    for position, name in enumerate(USER_FIELDS):
        categorical[name] = _keys([cells[position] for cells in user_cells])[user_rows]
    rated = [movies[str(movie)] for movie in movie_ids]
    for position, name in enumerate(MOVIE_FIELDS):
        categorical[name] = _keys([movie.fields()[position] for movie in rated])[movie_rows]
    numbers = np.array([movie.numbers() for movie in rated], dtype=np.float32)
    return RawTable(
        (ratings[:, 2] >= CLICK_RATING).astype(np.float32),
        categorical,
        {"release_year": numbers[movie_rows, 0], "genre_count": numbers[movie_rows, 1]},
    )


def _keys(texts: Sequence[str]) -> NDArray[np.uint64]:
    return np.array([hash_string(text) for text in texts], dtype=np.uint64)
