"""What an analyst with Polars would do, through ADBC: python -c ... DATABASE_URL FILE TABLE"""
import sys

import polars

url, file, table = sys.argv[1:]
frame = polars.read_database_uri(f"SELECT * FROM {table}", url.replace("postgres://", "postgresql://"), engine="adbc")
frame.write_parquet(file, compression="zstd", compression_level=3)
