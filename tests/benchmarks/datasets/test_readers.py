"""The readers take the raw public formats; all rows here are made up."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from afm_fx.errors import FileFormatError, UserError
from benchmarks.datasets import read_raw

USERS_1M = ["7::F::25::3::12345-678", "9::M::50::0::99999"]
MOVIES_1M = ["2::Señor Example (1999)::Drama|War", "5::Untitled::Comedy"]
AVAZU_HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def write_lines(path: Path, lines: list[str], encoding: str = "utf-8") -> None:
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))


def criteo_line(label: int, integers: dict[int, int], categories: dict[int, str]) -> str:
    cells = [
        str(label),
        *(str(integers.get(i, "")) for i in range(1, 14)),
        *(categories.get(i, "") for i in range(1, 27)),
    ]
    return "\t".join(cells)


def write_criteo(folder: Path) -> None:
    lines = [
        criteo_line(1, {1: 0, 2: -2, 13: 9}, {1: "00ab", 26: "ffee"}),
        criteo_line(0, {2: 5}, {1: "00ab", 2: "0001"}),
        criteo_line(0, {}, {1: "77cc"}),
    ]
    write_lines(folder / "train.txt", lines)


def write_avazu(folder: Path) -> None:
    rows = [
        "1000,0,14102100,1005,0," + ",".join(f"s{i}" for i in range(19)),
        "1001,1,14102223,1005,1," + ",".join(f"s{i}" for i in range(19)),
    ]
    write_lines(folder / "train", [AVAZU_HEADER, *rows])


def write_movielens_1m(folder: Path) -> None:
    write_lines(folder / "users.dat", USERS_1M, "latin-1")
    write_lines(folder / "movies.dat", MOVIES_1M, "latin-1")
    with gzip.open(folder / "ratings.csv.gz", "wt") as file:
        file.write("user_id,movie_id,rating\n7,2,4\n9,2,3\n7,5,5\n")


def write_movielens_100k(folder: Path) -> None:
    genres = ["unknown", *(f"Genre{number}" for number in range(1, 19))]
    write_lines(folder / "u.genre", [*(f"{name}|{number}" for number, name in enumerate(genres)), ""])
    write_lines(folder / "u.user", ["1|33|F|baker|A1B2C", "2|40|M|pilot|54321"])
    flags = ["1" if number in (2, 5) else "0" for number in range(19)]
    item = ["8", "Fête Example (1987)", "02-Mar-1987", "", "http://example.org"]
    write_lines(folder / "u.item", ["|".join([*item, *flags])], "latin-1")
    write_lines(folder / "u.data", ["1\t8\t5\t881000000", "2\t8\t1\t881000001"])


WRITERS: dict[str, Callable[[Path], None]] = {
    "criteo": write_criteo,
    "avazu": write_avazu,
    "movielens-1m": write_movielens_1m,
    "movielens-100k": write_movielens_100k,
}


def same(keys: np.ndarray) -> list[int]:
    """Small numbers in order of first appearance, so that keys compare without knowing the hash."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(key), len(seen)) for key in keys]


def test_criteo_keeps_missing_apart_and_takes_logs_of_integers(tmp_path: Path) -> None:
    write_criteo(tmp_path)
    raw = read_raw("criteo", tmp_path)
    assert raw.labels.tolist() == [1, 0, 0]
    assert list(raw.numeric) == [f"I{i}" for i in range(1, 14)]
    assert list(raw.categorical) == [f"C{i}" for i in range(1, 27)]
    np.testing.assert_allclose(raw.numeric["I2"], [-np.log(3), np.log(6), np.nan], rtol=1e-6)
    np.testing.assert_allclose(raw.numeric["I13"], [np.log(10), np.nan, np.nan], rtol=1e-6)
    assert raw.numeric["I1"][0] == 0
    assert same(raw.categorical["C1"]) == [0, 0, 1]
    assert same(raw.categorical["C2"]) == [0, 1, 0]
    assert same(raw.categorical["C3"]) == [0, 0, 0]


def test_criteo_reads_gzip_and_a_file_path_alike(tmp_path: Path) -> None:
    write_criteo(tmp_path)
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "train.txt.gz").write_bytes(gzip.compress((tmp_path / "train.txt").read_bytes()))
    plain, compressed, direct = (read_raw("criteo", path) for path in (tmp_path, packed, tmp_path / "train.txt"))
    for name in plain.categorical:
        assert plain.categorical[name].tolist() == compressed.categorical[name].tolist()
        assert plain.categorical[name].tolist() == direct.categorical[name].tolist()


def test_avazu_drops_the_id_and_splits_the_hour(tmp_path: Path) -> None:
    write_avazu(tmp_path)
    raw = read_raw("avazu", tmp_path)
    assert raw.labels.tolist() == [0, 1]
    assert len(raw.categorical) == 23
    assert "id" not in raw.categorical
    assert same(raw.categorical["hour_of_day"]) == [0, 1]
    assert same(raw.categorical["day_of_week"]) == [0, 1]
    assert same(raw.categorical["C1"]) == [0, 0]
    assert same(raw.categorical["banner_pos"]) == [0, 1]
    assert raw.numeric == {}


def test_movielens_1m_joins_users_and_movies_and_clicks_from_four_stars(tmp_path: Path) -> None:
    write_movielens_1m(tmp_path)
    raw = read_raw("movielens-1m", tmp_path)
    assert raw.labels.tolist() == [1, 0, 1]
    assert same(raw.categorical["user_id"]) == [0, 1, 0]
    assert same(raw.categorical["movie_id"]) == [0, 0, 1]
    for field in ("gender", "age", "occupation", "zip"):
        assert same(raw.categorical[field]) == [0, 1, 0], field
    for field in ("genres", "first_genre", "year"):
        assert same(raw.categorical[field]) == [0, 0, 1], field
    np.testing.assert_array_equal(raw.numeric["release_year"], [1999, 1999, np.nan])
    assert raw.numeric["genre_count"].tolist() == [2, 2, 1]


def test_movielens_1m_reads_the_published_ratings_dat_alike(tmp_path: Path) -> None:
    write_movielens_1m(tmp_path)
    expected = read_raw("movielens-1m", tmp_path)
    (tmp_path / "ratings.csv.gz").unlink()
    write_lines(tmp_path / "ratings.dat", ["7::2::4::1", "9::2::3::2", "7::5::5::3"])
    got = read_raw("movielens-1m", tmp_path)
    assert got.labels.tolist() == expected.labels.tolist()
    assert all(got.categorical[name].tolist() == keys.tolist() for name, keys in expected.categorical.items())


def test_movielens_100k_names_genres_from_flags(tmp_path: Path) -> None:
    write_movielens_100k(tmp_path)
    raw = read_raw("movielens-100k", tmp_path)
    assert raw.labels.tolist() == [1, 0]
    assert same(raw.categorical["occupation"]) == [0, 1]
    assert raw.numeric["genre_count"].tolist() == [2, 2]
    assert raw.numeric["release_year"].tolist() == [1987, 1987]


@pytest.mark.parametrize("name", WRITERS)
def test_max_rows_reads_the_first_rows_only(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path)
    whole, part = read_raw(name, tmp_path), read_raw(name, tmp_path, max_rows=1)
    assert len(part) == 1 < len(whole)
    assert all(part.categorical[field][0] == keys[0] for field, keys in whole.categorical.items())


@pytest.mark.parametrize("name", WRITERS)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=str(tmp_path)):
        read_raw(name, tmp_path)


DAMAGES: list[tuple[str, str, Callable[[bytes], bytes], str]] = [
    ("criteo", "train.txt", lambda text: text[: len(text) // 2], "Expected 40 columns"),
    ("criteo", "train.txt", lambda text: b"2" + text[1:], "row 1 has the label 2"),
    ("criteo", "train.txt", lambda text: text.replace(b"-2", b"x2"), "x2"),
    ("criteo", "train.txt", lambda text: b"", "is empty"),
    ("avazu", "train", lambda text: text.replace(b"banner_pos", b"banner"), "banner_pos"),
    ("avazu", "train", lambda text: text.replace(b"14102100", b"14132100"), "14132100"),
    ("avazu", "train", lambda text: text.rsplit(b",", 4)[0], "Expected 24 columns"),
    ("movielens-1m", "users.dat", lambda text: text.replace(b"::F::", b";F;"), "line 1"),
    ("movielens-1m", "users.dat", lambda text: text.replace(b"9::M", b"8::M"), "user 9"),
    ("movielens-1m", "movies.dat", lambda text: text.replace(b"5::U", b"6::U"), "movie 5"),
    ("movielens-1m", "ratings.csv.gz", lambda text: text[: len(text) // 2], "ratings.csv.gz"),
    ("movielens-100k", "u.data", lambda text: text.replace(b"2\t8", b"2\tx"), "whole number"),
    ("movielens-100k", "u.item", lambda text: text.rsplit(b"|", 1)[0], "line 1 has 23 cells"),
    ("movielens-100k", "u.genre", lambda text: text.replace(b"|18", b"|17"), "19 genres"),
    ("movielens-100k", "u.user", lambda text: b"", "is empty"),
]


@pytest.mark.parametrize(("name", "file", "damage", "culprit"), DAMAGES)
def test_damaged_files_are_refused_naming_file_and_place(
    name: str, file: str, damage: Callable[[bytes], bytes], culprit: str, tmp_path: Path
) -> None:
    WRITERS[name](tmp_path)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileFormatError, match=culprit):
        read_raw(name, tmp_path)


def test_unknown_dataset_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="movielens-100k"):
        read_raw("movielens", tmp_path)
    with pytest.raises(UserError, match="max_rows"):
        read_raw("criteo", tmp_path, max_rows=0)
