"""Reads one export of text with tools that nobody here wrote: text_readers.py FORMAT COMPRESSION URL ROWS SUM_OF_READ_COUNT

URL is its download_url. Ends with an error if any tool reads something else.
"""
import importlib.util
import io
import pathlib
import sys
import urllib.request

import duckdb
import pandas
import polars

form, compression, url, rows, reads = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])


def check(tool, found):
    assert found == (rows, reads), f"{tool} reads {found} of {url}, not {(rows, reads)}"
    print(tool, form, compression, *found)


if form == "csv":
    frame = pandas.read_csv(url, low_memory=False)
else:
    frame = pandas.read_json(url, lines=form == "jsonl")
check("pandas", (len(frame), int(frame["read_count"].sum())))

# Polars decompresses CSV and JSON lines by itself.
if form != "json":
    read = polars.read_csv if form == "csv" else polars.read_ndjson
    frame = read(io.BytesIO(urllib.request.urlopen(url).read()), infer_schema_length=None)
    check("polars", (frame.height, frame["read_count"].sum()))

package = importlib.util.find_spec("duckdb_extension_httpfs").submodule_search_locations[0]
connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{next(pathlib.Path(package).rglob('*.duckdb_extension'))}'")
# It tells the compression by the path, and this one ends in `download`.
source = f"read_{'csv' if form == 'csv' else 'json'}('{url}', compression = '{compression}')"
check("duckdb", connection.execute(f"SELECT count(*), sum(read_count)::BIGINT FROM {source}").fetchone())
