"""What an analyst with pandas would do: python -c ... DATABASE_URL FILE"""
import sys

import pandas
import pyarrow
import pyarrow.parquet
import sqlalchemy

engine = sqlalchemy.create_engine(sys.argv[1].replace("postgres://", "postgresql+psycopg2://"))
writer = None
with engine.connect().execution_options(stream_results=True) as connection:
    for chunk in pandas.read_sql("SELECT * FROM gottcha2_full", connection, chunksize=100_000):
        table = pyarrow.Table.from_pandas(chunk, preserve_index=False, schema=writer.schema if writer else None)
        writer = writer or pyarrow.parquet.ParquetWriter(sys.argv[2], table.schema, compression="zstd", compression_level=3)
        writer.write_table(table)
writer.close()
