"""What DuckDB reads in a file: python -c ... FILE EXPRESSION... prints each expression's value"""
import sys

import duckdb

print(*duckdb.sql(f"SELECT {', '.join(sys.argv[2:])} FROM '{sys.argv[1]}'").fetchone())
