"""Reads text in paths that looks like numbers by the lines of the README beside the data: lake_text.py FOLDER

FOLDER is a lake with hits of the samples `0012` and `7`, cut by year and sample. Ends with an error if any tool reads
something else.
"""
import pathlib
import re
import sys

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

readme = (pathlib.Path(sys.argv[1]) / "README.md").read_text()
lines = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[-1].splitlines()
scan, dataset = [line for line in lines if not line.startswith("import")]
for tool, table in {"polars": eval(scan).collect().to_arrow(), "pyarrow": eval(dataset).to_table()}.items():
    samples = set(table["sample_id"].to_pylist())
    assert samples == {"0012", "7"} and set(table["year"].to_pylist()) == {2026}, f"{tool} reads {samples}"
    print(tool, samples)
