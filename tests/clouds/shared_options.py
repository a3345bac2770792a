"""How the options that all clouds share reach a machine: in its user-data, or not at all."""

from __future__ import annotations

from typing import Any

# option: a value that is not its default, the machines whose user-data it changes, other options that it needs
IN_USER_DATA: dict[str, tuple[Any, ...]] = {
    "idle_timeout": ("7 minutes", "scheduler"),
    "death_timeout": ("7 minutes", "worker"),
    "security": (True, "both"),
    "protocol": ("ws", "both"),
    "worker_class": ("my.Worker", "worker"),
    "worker_module": ("my.module", "worker"),
    "worker_command": ("my-worker", "worker"),
    "worker_options": ({"nthreads": 3}, "worker"),
    "scheduler_options": ({"port": 9999}, "both"),
    "env_vars": ({"A": "b"}, "both"),
    "runtime": ("image", "both"),
    "packages": (["s3fs"], "both", {"runtime": "uv"}),
    "python": ("3.12", "both", {"runtime": "uv"}),
    "environment": ("/opt/conda", "both", {"runtime": "image"}),
    "docker_image": ("my/image:1", "both"),
    "scheduler_docker_image": ("my/image:1", "scheduler"),
    "worker_docker_image": ("my/image:1", "worker"),
    "docker_args": ("--shm-size 1g", "both"),
    "bootstrap": (False, "both"),
    "extra_bootstrap": (["echo hello"], "both"),
    "auto_shutdown": (False, "both"),
}
NOT_SENT = {
    "name": "is in every tag already; see the suite",
    "n_workers": "how many names the request has",
    "adaptive": "when requests are made",
    "start_timeout": "how long the launcher waits",
    "shutdown_on_close": "when the launcher removes machines",
    "debug": "what the launcher shows",
    "replacements": "how often the launcher replaces a lost worker",
    "requirements": "what becomes packages; see test_environment.py",
    "sync": "what becomes packages; see test_environment.py",
}
