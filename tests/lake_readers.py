"""Reads a partitioned dataset with tools that nobody here wrote: lake_readers.py FOLDER ROWS SUM_OF_READ_COUNT NULLS

FOLDER is a lake with hits, cut by year, month and day, whose earlier files lack the column `note`: so many rows read it as
null. Ends with an error if any tool reads something else. Spark needs Java, and is left out where there is none.
"""
import pathlib
import sys

import duckdb
import polars
import pyarrow.compute
import pyarrow.dataset
import pyarrow.parquet
import spark

folder, expected = pathlib.Path(sys.argv[1]), tuple(int(number) for number in sys.argv[2:5])
data = folder / "hits"


def check(tool, *found):
    assert found == expected, f"{tool} reads {found}, not {expected}"
    print(tool, *found)


connection = duckdb.connect()
connection.execute((folder / "duckdb.sql").read_text())
counted = "SELECT count(*), sum(read_count)::BIGINT, count(*) FILTER (note IS NULL) FROM hits"
check("duckdb", *connection.execute(counted).fetchone())
days = connection.execute("SELECT DISTINCT make_date(year, month, day) FROM hits").fetchall()
assert len(days) == len({path.parent for path in data.rglob("*.parquet")}), days
for query in connection.extract_statements((folder / "queries.sql").read_text()):
    connection.execute(query)
assert connection.execute("SELECT count(*) FROM hits_top_taxa('S1')").fetchone() == (1,)
assert connection.execute("SELECT sum(rows)::BIGINT FROM hits_per_day()").fetchone() == expected[:1]
assert connection.execute("SELECT count(*) FROM hits_samples_with('3052462')").fetchone()[0] >= 1

newest = max(data.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
frame = polars.scan_parquet(
    data / "**/*.parquet",
    hive_partitioning=True,
    schema=polars.read_parquet_schema(newest),
    missing_columns="insert",
)
frame = frame.filter(polars.col("year") > 2000)
frame = frame.select(polars.len(), polars.col("read_count").sum(), nulls=polars.col("note").null_count()).collect()
check("polars", *frame.row(0))

schema = pyarrow.parquet.read_schema(newest)
for name in ("year", "month", "day"):
    schema = schema.append(pyarrow.field(name, pyarrow.int32()))
table = pyarrow.dataset.dataset(data, partitioning="hive", schema=schema).to_table()
check("pyarrow", table.num_rows, pyarrow.compute.sum(table["read_count"]).as_py(), table["note"].null_count)

if session := spark.session():
    from pyspark.sql import functions

    frame = session.read.option("mergeSchema", True).parquet(str(data))
    assert {"year", "month", "day"} <= set(frame.columns)
    nulls = functions.sum(functions.when(functions.col("note").isNull(), 1).otherwise(0))
    check("spark", *frame.agg(functions.count("*"), functions.sum("read_count"), nulls).first())
    session.stop()
