"""Spark on this machine, for the programs that read partitioned datasets with it."""
import importlib.util
import shutil


def session():
    """A session of its own; none, said aloud, where Java or pyspark is missing."""
    if shutil.which("java") is None:
        print("Spark is left out: there is no Java")
        return None
    if importlib.util.find_spec("pyspark") is None:
        print("Spark is left out: there is no pyspark")
        return None
    from pyspark.sql import SparkSession

    return SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
