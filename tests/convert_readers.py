"""Reads converted files with tools that nobody here wrote: convert_readers.py FOLDER

FOLDER has the examples' query_perf of two days, 2 and 3 rows, their index_advisor, and odd, whose sample_id and taxid are
numbers and whose read_count is text. Ends with an error if any tool reads
something else. Spark needs Java, and is left out where there is none.
"""
import pathlib
import sys

import duckdb
import polars
import pyarrow.compute
import pyarrow.dataset
import spark

folder = pathlib.Path(sys.argv[1])
data = folder / "query_perf"


def check(tool, rows, examined):
    assert (rows, examined) == (5, 1238), f"{tool} reads {rows} rows that examined {examined}"
    print(tool, "reads converted files")


connection = duckdb.connect()
connection.execute((folder / "duckdb.sql").read_text())
check("duckdb", *connection.execute("SELECT count(*), sum(rows_examined)::BIGINT FROM query_perf").fetchone())
for query in connection.extract_statements((folder / "queries.sql").read_text()):
    connection.execute(query)
days = connection.execute("SELECT stored_on::VARCHAR, rows FROM query_perf_per_day()").fetchall()
assert days == [("2025-10-28", 2), ("2025-10-29", 3)], days
types = dict(connection.execute("SELECT column_name, column_type FROM (DESCRIBE query_perf)").fetchall())
assert types["timestamp"] == "TIMESTAMP WITH TIME ZONE" and types["cache_hit"] == "BOOLEAN", types
assert connection.execute("SELECT recommended_index FROM index_advisor").fetchall() == [("idx_embedding_vector",)]
assert connection.execute("SELECT taxon_name, hits FROM odd_top_taxa(17)").fetchall() == [("Orthoebolavirus", 1)]

frame = polars.scan_parquet(data / "**/*.parquet", hive_partitioning=True)
check("polars", *frame.select(polars.len(), polars.col("rows_examined").sum()).collect().row(0))

table = pyarrow.dataset.dataset(data, partitioning="hive").to_table()
check("pyarrow", table.num_rows, pyarrow.compute.sum(table["rows_examined"]).as_py())

if session := spark.session():
    from pyspark.sql import functions

    frame = session.read.parquet(str(data))
    check("spark", *frame.agg(functions.count("*"), functions.sum("rows_examined")).first())
    assert frame.where("day = 29").count() == 3
    session.stop()
