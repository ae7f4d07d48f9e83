"""The saved page in Firefox, spoken to through its own Marionette protocol: no driver is needed."""

import json
import shutil
import socket
import subprocess
import time

import pytest

import lens_linear as ll
from tests.conftest import absent

pytestmark = pytest.mark.whole

PREFERENCES = (
    'user_pref("marionette.port", {});\nuser_pref("app.update.disabledForTesting", true);\n'
)


class Marionette:
    """Commands as ``length:[0, number, name, parameters]`` over one socket."""

    def __init__(self, port):
        self.number = 0
        for _ in range(600):
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
                break
            except OSError:
                time.sleep(0.2)
        self.file = self.socket.makefile("rb")
        self._read()
        self.ask("WebDriver:NewSession", {})

    def ask(self, name, parameters):
        self.number += 1
        text = json.dumps([0, self.number, name, parameters])
        self.socket.sendall(f"{len(text)}:{text}".encode())
        _, _, error, answer = self._read()
        assert error is None, error
        return answer

    def script(self, code):
        return self.ask("WebDriver:ExecuteScript", {"script": code, "args": []})["value"]

    def _read(self):
        length = b""
        while (one := self.file.read(1)) != b":":
            length += one
        return json.loads(self.file.read(int(length)))


@pytest.fixture
def firefox(tmp_path):
    if shutil.which("firefox-esr") is None:
        absent("no firefox-esr: the page is not looked at in Firefox")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "user.js").write_text(PREFERENCES.format(port))
    command = ["firefox-esr", "--headless", "--marionette", "--no-remote", "--profile", tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Marionette(port)
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_firefox_checks_itself_and_follows_the_address(firefox, tmp_path):
    page = ll.explore(ll.load("attn-2l")).save(tmp_path / "page.html")
    address = "#head=L0H0&position=3&text=the+king+and+the+king"
    firefox.ask("WebDriver:Navigate", {"url": page.as_uri() + address})
    root = "document.getElementById('explorer').shadowRoot"
    assert "Self-check passed" in firefox.script(f"return {root}.querySelector('.check').innerText")
    text = firefox.script(f"return {root}.querySelector('.explorer').innerText")
    assert "L0H0: previous token head" in text and "attention of L0H0 from token 3" in text
    requests = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert firefox.script(requests) == []
