"""Reads one export with tools that nobody here wrote: readers.py FILE URL ROWS SUM_OF_READ_COUNT

FILE is the export on disk, URL its download_url. Ends with an error if any tool reads something else.
"""
import importlib.util
import io
import pathlib
import sys
import urllib.request

import duckdb
import pandas
import polars
import pyarrow.compute
import pyarrow.parquet

file, url, rows, reads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def check(tool, found):
    assert found == (rows, reads), f"{tool} reads {found}, not {(rows, reads)}"
    print(tool, *found)


for place in (file, url):
    where = "from disk" if place == file else "by HTTP"
    frame = pandas.read_parquet(place)
    check(f"pandas {where}", (len(frame), int(frame["read_count"].sum())))
    assert str(frame["created_at"].dtype).endswith("UTC]"), frame["created_at"].dtype
    frame = polars.read_parquet(place)
    check(f"polars {where}", (frame.height, frame["read_count"].sum()))

table = pyarrow.parquet.read_table(io.BytesIO(urllib.request.urlopen(url).read()))
check("pyarrow by HTTP", (table.num_rows, pyarrow.compute.sum(table["read_count"]).as_py()))
assert table.schema.field("created_at").type == pyarrow.timestamp("us", tz="UTC")

package = importlib.util.find_spec("duckdb_extension_httpfs").submodule_search_locations[0]
connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{next(pathlib.Path(package).rglob('*.duckdb_extension'))}'")
for place in (file, url):
    connection.execute(f"CREATE OR REPLACE VIEW gottcha2 AS SELECT * FROM '{place}'")
    check("duckdb", connection.execute("SELECT count(*), sum(read_count)::BIGINT FROM gottcha2").fetchone())
