"""Reads values that stand in paths with tools that nobody here wrote: lake_values.py FOLDER

FOLDER is a lake with marks, cut by `note`, `n` and `is_good`. Ends with an error if any tool reads something else.
"""
import pathlib
import sys

import duckdb
import polars
import pyarrow.dataset

folder = pathlib.Path(sys.argv[1])
data = folder / "marks"
notes = {"S1": "good", "S2": "a/b", "S3": "bad", "S4": None, "S5": "NULL", "S6": "null", "S7": "Null"}


def check(tool, found, expected):
    assert found == expected, f"{tool} reads {found}, not {expected}"
    print(tool, found)


connection = duckdb.connect()
connection.execute((folder / "duckdb.sql").read_text())
ask = lambda query: connection.execute(query).fetchall()
numbers = "SELECT min(n), max(n), count(*) FILTER (n > 9.5), count(*) FILTER (is_good), count(*) FILTER (n IS NULL) FROM marks"
check("duckdb", ask(numbers), [(-1, 10, 1, 2, 4)])
check("duckdb", ask("SELECT sample_id FROM marks WHERE n = 9 AND is_good"), [("S1",)])
check("duckdb", dict(ask("SELECT sample_id, note FROM marks")), notes)

table = pyarrow.dataset.dataset(data, partitioning="hive").to_table()
check("pyarrow", dict(zip(table["sample_id"].to_pylist(), table["note"].to_pylist())), notes)

frame = polars.scan_parquet(data / "**/*.parquet", hive_partitioning=True).select("sample_id", "note").collect()
check("polars", dict(frame.rows()), notes)
