"""What an analyst with DuckDB would do: python -c ... DATABASE_URL FILE TABLE"""
import importlib.util
import pathlib
import sys

import duckdb

url, file, table = sys.argv[1:]
package = importlib.util.find_spec("duckdb_extension_postgres_scanner").submodule_search_locations[0]
extension = next(pathlib.Path(package).rglob("*.duckdb_extension"))
connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{extension}'")
connection.execute(f"ATTACH '{url}' AS pg (TYPE postgres, READ_ONLY)")
connection.execute(f"COPY pg.public.{table} TO '{file}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)")
