"""How long a plan takes in a new process, beside the imports that reading options needs: for the other benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / "config"
PEER = "import time; start = time.perf_counter(); import dask.config, jsonschema; print(time.perf_counter() - start)"
PLAN = """
import time
start = time.perf_counter()
import asyncio, json, sys
import dask_cloudvm
from dask_cloudvm import clouds, options, plan
profile, sdk, flag = sys.argv[1:]
resolved = options.resolve(profile)
cloud = clouds.make(resolved.cloud, resolved.values)
facts = cloud.offline() if flag == "--offline" else asyncio.run(cloud.facts(None))
made = plan.plan(resolved, cloud, facts, "bench", [], "3fa9c1", plan.placeholders())
plan.render(made, plan.requests(made, cloud, facts))
took = time.perf_counter() - start
imported = sorted({".".join(name.split(".")[:2]) for name in sys.modules if name.startswith(sdk + ".")})
print(json.dumps([took, imported]))
"""


def planned(profile: str, sdk: str, bounds: Mapping[str, float], allowed: Collection[str]) -> Iterator[str]:
    """From the import of dask_cloudvm to the rendered bodies; gives what is broken.

    ``bounds`` are multiples of the peer's seconds, by flag; ``allowed`` is what a plan may import of ``sdk``.
    """
    for flag, bound in bounds.items():
        pairs = [(_printed(PLAN, str(CONFIG / profile), sdk, flag), _printed(PEER)) for _ in range(5)]
        seconds, peer = min(plan[0] for plan, _ in pairs), min(peer for _, peer in pairs)
        imported = pairs[0][0][1]
        ratio = f"{seconds / peer:.2f}x (bound {bound:g}x)"
        print(
            f"plan {flag}: {seconds:.2f} s; importing Dask and jsonschema: {peer:.2f} s, {ratio}; "
            f"imports {', '.join(imported) or f'nothing of {sdk}'}"
        )
        if seconds > bound * peer:
            yield f"a plan {flag} takes {seconds / peer:.2f} times as long as its imports"
        if set(imported) - set(allowed):
            yield f"a plan {flag} imports {imported}"


def _printed(*program: str) -> Any:
    done = subprocess.run([sys.executable, "-c", *program], check=True, capture_output=True)
    return json.loads(done.stdout)
