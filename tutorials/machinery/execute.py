"""Run a notebook in a fresh kernel with the network off, and time every cell."""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

# Kernels talk to their client through local sockets, so only other addresses are refused.
_OFFLINE = """
import socket as _socket

def _refuse(address):
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if isinstance(host, str) and not (host.startswith(("127.", "/")) or host in ("", "localhost", "::1")):
        raise OSError(f"the network is off while tutorials are tested; something asked for {host}")

_connect, _lookup = _socket.socket.connect, _socket.getaddrinfo
_socket.socket.connect = lambda self, address: (_refuse(address), _connect(self, address))[1]
_socket.getaddrinfo = lambda host, *rest, **more: (_refuse((host,)), _lookup(host, *rest, **more))[1]
del _socket
"""
_COLLECT = """
import dataclasses as _dc, json as _json
import lens_linear as _ll
import builtins as _b
_b.print("RESULTS " + _json.dumps([_dc.asdict(_r) for _r in _ll.check.results()]))
"""


@dataclass(frozen=True)
class Execution:
    """An executed notebook, the seconds of each of its cells, and what its checks said."""

    notebook: NotebookNode
    seconds: list[float]
    results: list[dict[str, Any]]
    total: float


class _TimedClient(NotebookClient):
    """Keeps the seconds of every cell."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    async def async_execute_cell(
        self, cell: NotebookNode, *args: Any, **kwargs: Any
    ) -> NotebookNode:
        started = time.monotonic()
        try:
            return await super().async_execute_cell(cell, *args, **kwargs)
        finally:
            self.seconds.append(time.monotonic() - started)


def execute(notebook: NotebookNode, *, timeout: int = 300) -> Execution:
    """Run every cell in a fresh kernel, offline, in an empty folder.

    Args:
        notebook: left unchanged; the executed copy is returned.
        timeout: seconds a cell.
    """
    copy = nbformat.from_dict(notebook)
    for cell in copy.cells:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    copy.cells = [new_code_cell(_OFFLINE), *copy.cells, new_code_cell(_COLLECT)]
    saved = {key: os.environ.get(key) for key in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory() as folder:
            client = _TimedClient(
                copy,
                timeout=timeout,
                kernel_name="python3",
                record_timing=False,
                extra_arguments=["--log-level=ERROR"],
                resources={"metadata": {"path": folder}},
            )
            client.execute()
    finally:
        for key, value in saved.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    total = time.monotonic() - started
    copy.metadata = nbformat.from_dict(notebook.metadata)  # the kernel adds its own version
    collected = _printed(copy.cells.pop())
    copy.cells = copy.cells[1:]
    for count, cell in enumerate((c for c in copy.cells if c["cell_type"] == "code"), start=1):
        cell["execution_count"] = count
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = count
    return Execution(
        notebook=copy,
        seconds=client.seconds[1 : len(copy.cells) + 1],
        results=json.loads(collected.get("RESULTS", "[]")),
        total=total,
    )


_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def _printed(cell: NotebookNode) -> dict[str, str]:
    text = "".join(o.get("text", "") for o in cell["outputs"] if o["output_type"] == "stream")
    return dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
