"""Milliseconds in which DuckDB answers over the views of a lake: python -c ... FOLDER SAMPLE TAXON

Each is asked seven times on one connection, of which the median counts. The first answer stands in brackets: it also opens
all files.
"""
import statistics
import sys
import time

import duckdb

folder, sample, taxon = sys.argv[1:]
connection = duckdb.connect()
with open(f"{folder}/duckdb.sql") as script:
    connection.execute(script.read())
days = "SELECT * FROM gottcha2_per_day() ORDER BY stored_on DESC LIMIT 31"
latest, *_, earliest = [row[0] for row in connection.execute(days).fetchall()][:30]
window = f"make_date(year, month, day) BETWEEN DATE '{earliest}' AND DATE '{latest}'"
most = "SELECT taxid FROM gottcha2 WHERE level = 'species' GROUP BY taxid ORDER BY count(*) DESC LIMIT 1"
frequent = connection.execute(most).fetchone()[0]
for what, query in [
    (
        "DuckDB, 30-day aggregate by taxon",
        f"SELECT taxid, count(*), sum(read_count), avg(rel_abundance) FROM gottcha2 WHERE {window} GROUP BY taxid",
    ),
    (
        "DuckDB, aggregate by day over all",
        "SELECT year, month, day, count(*), sum(read_count), avg(rel_abundance) FROM gottcha2 GROUP BY ALL",
    ),
    ("DuckDB, all rows of one sample", f"SELECT * FROM gottcha2 WHERE sample_id = '{sample}'"),
    ("DuckDB, samples with the rarest taxon", f"SELECT * FROM gottcha2_samples_with('{taxon}')"),
    ("DuckDB, samples with the most frequent taxon", f"SELECT * FROM gottcha2_samples_with('{frequent}')"),
    ("DuckDB, all rows of the rarest taxon", f"SELECT * FROM gottcha2 WHERE taxid = '{taxon}'"),
]:
    times = []
    for _ in range(7):
        started = time.perf_counter()
        columns = connection.execute(query).fetchnumpy()
        times.append((time.perf_counter() - started) * 1000)
    rows = len(next(iter(columns.values())))
    print(f"{what}\t{statistics.median(times):.0f} ms (first {times[0]:.0f} ms), {rows} rows")
