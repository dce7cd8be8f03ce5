"""Profiles of files: which column is what, which are numbers, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from otel_mlops.cli import main
from otel_mlops.profile import Categorical, Numeric, Profile, from_file
from otel_mlops.profile.from_file import Plan, profile_of

DATA = """rooms,kind,city,when,said,true
1,a,1,2024-01-01,3,4
2.5,b,2,2024-01-02T10:00:00Z,3,4
NA,null,2,2024-01-03,5,5
1e3, NaN ,2,,5,5
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A CSV with everything."""
    path = tmp_path / "data.csv"
    path.write_text(DATA)
    return path


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read two rows at a time."""
    monkeypatch.setattr(from_file, "_CELLS", 12)


PLAN = Plan(prediction="said", truth="true", time="when")


def test_a_csv(data: Path):
    """A column is of numbers if all its cells are; empty ones, NA, NaN and null are missing."""
    profile = profile_of(data, PLAN, categorical=["city"])
    rooms, kind, city = profile.features
    assert isinstance(rooms, Numeric)
    assert (rooms.maximum, rooms.counts[-1], sum(rooms.counts)) == (1000.0, 1, 4)
    assert kind == Categorical("kind", ("a", "b"), (1.0, 1.0, 0.0, 2.0))
    assert city == Categorical("city", ("2", "1"), (3.0, 1.0, 0.0, 0.0))
    assert isinstance(profile.prediction, Numeric)
    assert profile.training["mae"] == 0.5
    assert profile.rows == 4


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators(data: Path, separator: str):
    """Semicolons and tabs separate as commas do, and a byte order mark is no part of a name."""
    expected = profile_of(data, PLAN).digest
    data.write_text("\ufeff" + DATA.replace(",", separator), encoding="utf-8")
    assert profile_of(data, PLAN).digest == expected


def test_a_time_gives_blocks(data: Path):
    """With a column of time each feature has the threshold of its blocks."""
    rows = [f"{i * i % 7},{i * 3_600}" for i in range(100)]
    data.write_text("\n".join(["x,when", *rows]))
    (feature,) = profile_of(data, Plan(time="when"), block="hour").features
    assert feature.block is None or feature.block > 0.0
    expected = Profile.fit(
        {"x": [i * i % 7 for i in range(100)]}, timestamps=[i * 3_600 for i in range(100)], block=36_000.0
    )
    assert profile_of(data, Plan(time="when"), block=36_000.0).digest == expected.digest
    assert expected.features[0].block is not None


@pytest.mark.parametrize("library", ["polars", "pyarrow"])
def test_parquet_is_read(tmp_path: Path, library: str):
    """Through either library a Parquet file gives the profile of its frame, types and missing values included."""
    frame = pl.DataFrame({"n": [1.0, None, 3.0, 3.0, 5.0], "k": ["a", None, "b", "b", "b"], "y": [1, 0, 1, 1, 0]})
    path = tmp_path / "data.parquet"
    frame.write_parquet(path)
    profile = profile_of(path, Plan(prediction="y"), find=library.__eq__, type="classification")
    assert profile.digest == Profile.fit(frame.select("n", "k"), frame["y"], type="classification").digest
    path.write_text("PAR1")
    with pytest.raises(ValueError, match=r"data\.parquet: expected Parquet"):
        profile_of(path, find=library.__eq__)
    with pytest.raises(FileNotFoundError):
        profile_of(tmp_path / "nothing.parquet", find=library.__eq__)


def test_parquet_without_a_reader(tmp_path: Path):
    """Where nothing can read Parquet the message has the install line."""
    with pytest.raises(ValueError, match=r"pip install 'otel-mlops\[parquet\]'"):
        profile_of(tmp_path / "data.parquet", find=lambda _name: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line with the names"),
        ("a,b\n1,2\n3\n", "line 3 has 1 cells, not 2"),
        ("a,a\n1,2\n", "two columns have the same name"),
        ('a,b\n1,"2\n', "line 2: unexpected end of data"),
        ("a,b\n", "no rows"),
        ("said\n1\n", "0 features"),
    ],
)
def test_a_broken_csv_is_told(data: Path, text: str, message: str):
    """What is wrong in a file is told with its path and line."""
    data.write_text(text)
    with pytest.raises(ValueError, match=rf"data\.csv: .*{message}"):
        profile_of(data, Plan(prediction="said") if "said" in text else Plan())


def test_python_alone_reads_1_000_as_a_number(data: Path):
    """A cell such as 1_000 is a text."""
    data.write_text("a\n1_000\n2\n")
    assert isinstance(profile_of(data).features[0], Categorical)


def test_the_command_writes_a_profile(data: Path, capsys: pytest.CaptureFixture[str]):
    """`otel-mlops profile` writes the profile that its options ask for, and says what it holds."""
    output = data.parent / "model.profile.json"
    options = ["--prediction", "said", "--truth", "true", "--time", "when", "--categorical", "city", "--drop", "kind"]
    assert main(["profile", str(data), "-o", str(output), *options, "--bins", "4", "--model-version", "v1"]) == 0
    profile = Profile.load(output)
    assert [feature.name for feature in profile.features] == ["rooms", "city"]
    assert (profile.model_version, profile.rows) == ("v1", 4)
    assert profile == profile_of(
        data, Plan("said", "true", None, "when", ["kind"]), categorical=["city"], bins=4, model_version="v1",
        created_at=profile.created_at,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith(f"{output}: 2 features, 4 rows, rmse 0.7071, mae 0.5")
    assert out.endswith(f"{profile.digest}\n")


def test_the_command_knows_classifiers(data: Path, capsys: pytest.CaptureFixture[str]):
    """With a score the model is a classifier, whose positive label may be given."""
    data.write_text("x,said,true,score\n" + "".join(f"{i},{i % 2},{i % 2},{i % 2 * 0.8 + 0.1}\n" for i in range(8)))
    output = data.parent / "p.json"
    options = ["--prediction", "said", "--truth", "true", "--score", "score", "--positive", "1"]
    assert main(["profile", str(data), "-o", str(output), *options]) == 0
    assert json.loads(output.read_text())["positive"] == "1"
    assert "accuracy 1, auc 1, brier 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--truth", "nothing"], "data.csv: there is no column 'nothing'; there are rooms, kind"),
        (["--bins", "1"], "bins is 1, expected a whole number from 2 to 200"),
        (["-o", "/nowhere/p.json"], "/nowhere/p.json"),
    ],
)
def test_the_command_tells_what_is_wrong(
    data: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
):
    """A wrong option or file ends with 1 and one line, and writes nothing."""
    output = data.parent / "p.json"
    assert main(["profile", str(data), "-o", str(output), *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("otel-mlops profile: ")
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()
