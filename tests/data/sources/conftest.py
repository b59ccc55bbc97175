"""A web server of this machine in the place of the public ones, and a cache of its own for each test."""

import functools
import http.server
import threading

import pytest


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        self.server.paths.append(self.path)

    def do_GET(self):
        if "broken" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"too little")
            self.close_connection = True
        else:
            super().do_GET()


@pytest.fixture
def server(tmp_path):
    """A server of the folder ``server.folder`` at ``server.url``; ``server.paths`` is what was asked for."""
    folder = tmp_path / "public"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.paths, running.folder = [], folder
        running.url = f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder that downloads go to."""
    monkeypatch.setenv("TESSEREC_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"
