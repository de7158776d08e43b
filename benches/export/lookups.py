"""Median milliseconds in which DuckDB finds rows in a file: python -c ... FILE CONDITION..."""
import statistics
import sys
import time

import duckdb

file, *conditions = sys.argv[1:]
connection = duckdb.connect()
for condition in conditions:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        columns = connection.execute(f"SELECT * FROM '{file}' WHERE {condition}").fetchnumpy()
        times.append((time.perf_counter() - started) * 1000)
    print(f"{statistics.median(times):.1f} {len(columns['sample_id'])}")
