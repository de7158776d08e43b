"""What an analyst with DuckDB would do: python -c ... DATABASE_URL FILE"""
import importlib.util
import pathlib
import sys

import duckdb

package = importlib.util.find_spec("duckdb_extension_postgres_scanner").submodule_search_locations[0]
extension = next(pathlib.Path(package).rglob("*.duckdb_extension"))
connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
connection.execute(f"LOAD '{extension}'")
connection.execute(f"ATTACH '{sys.argv[1]}' AS pg (TYPE postgres, READ_ONLY)")
connection.execute(
    f"COPY pg.public.gottcha2_full TO '{sys.argv[2]}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 3)"
)
