"""Several Dask workers on one machine, as ``dask_cuda`` starts where there are several GPUs."""

from __future__ import annotations

import sys
import time

import distributed

from dask_cloudvm import LocalVMCluster


def test_machines_with_two_workers_each_scale_as_machines():
    command = f"{sys.executable} -m distributed.cli.dask_worker --nworkers 2 --nthreads 1 --no-dashboard"
    with LocalVMCluster("two", n_workers=2, worker_command=command, report=lambda line: None) as cluster:
        cluster.ready()
        with distributed.Client(cluster) as client:
            client.wait_for_workers(4)
            names = {worker["name"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()}
            assert names == {f"{machine}-{i}" for machine in cluster.workers for i in range(2)}
            assert cluster.observed == set(cluster.workers)
            data = client.scatter(list(range(20)))
            cluster.scale(1)
            end = time.monotonic() + 60
            while len(cluster.workers) > 1 or len(client.scheduler_info(n_workers=-1)["workers"]) > 2:
                assert time.monotonic() < end
                time.sleep(0.1)
            assert client.gather(data) == list(range(20))
            assert len(cluster.workers) == 1 and cluster.observed == set(cluster.workers)
