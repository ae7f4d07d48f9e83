"""The explorer inside a notebook: the page's own bundle in an anywidget, texts answered by the kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from lens_linear.explorer.page import bundle
from lens_linear.explorer.payload import dumps

Answer = Callable[[str, list[str]], dict[str, Any]]


class ExplorerWidget(anywidget.AnyWidget):
    """Shows a payload; asks ``answer(text, ablated)`` for what the page cannot compute; ``words`` name it."""

    _esm = bundle() + "\nexport default { render: LensLinearExplorer.render };\n"
    payload = traitlets.Unicode().tag(sync=True)
    selection = traitlets.Unicode("").tag(sync=True)

    def __init__(self, payload: dict[str, Any], answer: Answer, words: str) -> None:
        super().__init__(payload=dumps(payload))
        self._answer = answer
        self._words = words
        self.on_msg(self._asked)

    def __repr__(self) -> str:
        return self._words  # what a stored notebook shows where no widget runs

    def _asked(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if not isinstance(message, dict) or message.get("type") != "run":
            return
        number = message.get("number")
        try:
            found = self._answer(str(message["text"]), [str(one) for one in message["ablated"]])
            self.send({"type": "run", "number": number, "answer": json.loads(dumps(found))})
        except Exception as reason:  # shown in the page, where it was asked
            self.send({"type": "run", "number": number, "error": str(reason)})
