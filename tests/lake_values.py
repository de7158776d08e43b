"""Reads values that stand in paths with tools that nobody here wrote: lake_values.py FOLDER KEPT

FOLDER is a lake with marks, cut by `note`, `n` and `is_good`; KEPT is one cut by year, month, day, `n` and `note`, whose files
hold these columns too. Ends with an error if any tool reads something else.
"""
import pathlib
import sys

import duckdb
import pandas
import polars
import pyarrow.dataset
import pyarrow.parquet

folder, kept = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
data = folder / "marks"
notes = {"S1": "good", "S2": "a/b", "S3": "bad", "S4": None, "S5": "NULL", "S6": "null", "S7": "Null", "S8": None}


def check(tool, found, expected):
    assert found == expected, f"{tool} reads {found}, not {expected}"
    print(tool, found)


connection = duckdb.connect()
connection.execute((folder / "duckdb.sql").read_text())
ask = lambda query: connection.execute(query).fetchall()
numbers = "SELECT min(n), max(n), count(*) FILTER (n > 9.5), count(*) FILTER (is_good), count(*) FILTER (n IS NULL) FROM marks"
check("duckdb", ask(numbers), [(-1, 10, 1, 2, 5)])
check("duckdb", ask("SELECT sample_id FROM marks WHERE n = 9 AND is_good"), [("S1",)])
check("duckdb", dict(ask("SELECT sample_id, note FROM marks")), notes)
ask("SET TimeZone = 'Asia/Tokyo'")
check("duckdb in Tokyo", ask("SELECT stored_on::VARCHAR, rows FROM marks_per_day()"), [("2026-01-01", 8)])

table = pyarrow.dataset.dataset(data, partitioning="hive").to_table()
check("pyarrow", dict(zip(table["sample_id"].to_pylist(), table["note"].to_pylist())), notes)

frame = polars.scan_parquet(data / "**/*.parquet", hive_partitioning=True).select("sample_id", "note").collect()
check("polars", dict(frame.rows()), notes)

years = {(sample, 2026, {"S1": 9, "S2": 10, "S3": -1}.get(sample)) for sample in notes}
whole = lambda number: None if pandas.isna(number) else int(number)
rows = lambda samples, of_years, numbers: {(s, int(y), whole(n)) for s, y, n in zip(samples, of_years, numbers)}
columns = ["sample_id", "year", "n"]
data = kept / "marks"
scanned = polars.scan_parquet(data / "**/*.parquet", hive_partitioning=True).select(columns).collect()
for tool, frame in {
    "pyarrow.dataset, columns kept": pyarrow.dataset.dataset(data).to_table().to_pandas(),
    "pyarrow.parquet, columns kept": pyarrow.parquet.read_table(data, partitioning=None).to_pandas(),
    "pandas, columns kept": pandas.read_parquet(data, partitioning=None),
    "polars, columns kept": scanned.to_dict(as_series=False),
}.items():
    check(tool, rows(*(frame[column] for column in columns)), years)
connection.execute((kept / "duckdb.sql").read_text())
check("duckdb, columns kept", set(ask("SELECT sample_id, year, n FROM marks")), years)
# Paths know no empty text; the files do.
check("duckdb, columns kept", dict(ask("SELECT sample_id, note FROM marks")), notes | {"S8": ""})
check("duckdb, columns kept", ask("SELECT sample_id FROM marks WHERE note = '' AND year = 2026"), [("S8",)])
