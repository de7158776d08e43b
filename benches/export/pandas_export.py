"""What an analyst with pandas would do: python -c ... DATABASE_URL FILE TABLE"""
import sys

import pandas
import pyarrow
import pyarrow.parquet
import sqlalchemy

url, file, table = sys.argv[1:]
engine = sqlalchemy.create_engine(url.replace("postgres://", "postgresql+psycopg2://"))
writer = None
with engine.connect().execution_options(stream_results=True) as connection:
    for chunk in pandas.read_sql(f"SELECT * FROM {table}", connection, chunksize=100_000):
        schema = writer.schema if writer else None
        rows = pyarrow.Table.from_pandas(chunk, preserve_index=False, schema=schema)
        writer = writer or pyarrow.parquet.ParquetWriter(file, rows.schema, compression="zstd", compression_level=3)
        writer.write_table(rows)
writer.close()
