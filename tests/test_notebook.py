"""A notebook, run for real: its kernel starts a cluster, shows it, computes on it, scales it and leaves it running."""

from __future__ import annotations

from textwrap import dedent

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from dask_cloudvm import down, ls, tls
from dask_cloudvm.clouds.machine import MARK

WIDGET = "application/vnd.jupyter.widget-view+json"
CELLS = {
    "start": """
        from dask_cloudvm import LocalVMCluster
        cluster = LocalVMCluster(name="notebook", n_workers=2, nthreads=1, memory_limit="600 MiB")
        cluster.ready()
        """,
    "show": "cluster",
    "compute": """
        client = cluster.get_client()
        client.gather(client.map(lambda x: x**2, range(5)))
        """,
    "scale": """
        cluster.scale(3)
        cluster.ready()
        client.run(lambda dask_worker: dask_worker.name).values()
        """,
    "detach": """
        cluster.detach()
        client.close()
        cluster.close()
        """,
    "find": """
        from dask_cloudvm import from_name
        again = from_name("notebook")
        again
        """,
    "leave": "again.close()",
}


def machine_processes() -> list[psutil.Process]:
    """What runs as a machine of this test's own state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(tls.state_folder())):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place for all that the kernel and its clusters write."""
    for variable in ("XDG_STATE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    yield tmp_path
    for name in {vm.cluster for vm in ls()}:
        down(name)


def notebook() -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(dedent(code).strip()) for code in CELLS.values()])


def text(cell: nbformat.NotebookNode) -> str:
    """What a cell printed, and its result as plain text."""
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def shown(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The one display of a cell, by MIME type."""
    [display] = [o for o in cell.outputs if o.output_type == "display_data"]
    return display.data


@pytest.mark.timeout(150)
def test_notebook(folder):
    book = notebook()
    NotebookClient(book, timeout=90, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    cells = dict(zip(CELLS, book.cells, strict=True))

    assert text(cells["start"]).startswith("Making cluster notebook on local\nScheduler at tls://127.0.0.1:")
    assert text(cells["compute"]) == "[0, 1, 4, 9, 16]"
    assert text(cells["scale"]).count("notebook-worker-") == 3
    check_display(shown(cells["show"]), workers=2)
    check_display(shown(cells["find"]), workers=3)
    assert not text(cells["detach"]) + text(cells["leave"])

    assert sorted(vm.role for vm in ls() if vm.alive) == ["scheduler", "worker", "worker", "worker"]
    assert len(down("notebook")) == 4
    assert not machine_processes()


def check_display(data: nbformat.NotebookNode, workers: int) -> None:
    assert WIDGET in data, "distributed's own widget, by which the cluster is scaled"
    html = data["text/html"]
    assert "LocalVMCluster" in html and "http://127.0.0.1:" in html
    assert f"Machines ({1 + workers})" in html
    table = html[html.index("Machines (") :]
    assert table.count("notebook-worker-") == workers
    assert table.count("notebook-scheduler") == 1
