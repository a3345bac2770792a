"""A real workload on a running cluster: a group-by over ten million rows and more of generated time series.

python benchmarks/timeseries.py CLUSTER
"""

from __future__ import annotations

import sys
import time

import dask
import pandas as pd

from dask_cloudvm import from_name


def main(name: str) -> None:
    cluster = from_name(name)
    client = cluster.get_client()
    frame = dask.datasets.timeseries(start="2000-01-01", end="2000-05-01", freq="1s", partition_freq="3d", seed=1)
    started = time.perf_counter()
    statistics = {"x": ["mean", "std"], "y": ["min", "max"], "id": "count"}
    rows, result = dask.compute(frame.shape[0], frame.groupby("name").agg(statistics))
    took = time.perf_counter() - started
    workers = len(client.scheduler_info(n_workers=-1)["workers"])
    with pd.option_context("display.width", 100, "display.precision", 4):
        print(result.sort_index().head(5))
    print(f"{rows:,} rows in {len(result)} groups, {took:.1f} s on {workers} workers of cluster {cluster.name}")
    client.close()
    cluster.close()


if __name__ == "__main__":
    main(sys.argv[1])
