"""A local stand-in for the bucket: serves a folder by http, and misbehaves as it is told."""

import http.server
import threading
from collections import Counter
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Counts finished requests by path; `interrupt` cuts the next answers for a path, `refuse` all after it."""

    request_queue_size = 100  # a connection that finds no place in it is tried again after a second

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.served, self.interrupt, self.allowed = root, Counter(), Counter(), None
        # asks often whether it shall shut down: half a second, as it is otherwise, is most of some tests
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # which holds back what follows the headers until they are acknowledged

    def do_GET(self):
        server: Server = self.server
        path = self.path.partition("?")[0]
        file = server.root / path.lstrip("/")
        if path.startswith("/storage/v1/b/"):  # the bucket's own interface
            bucket, _, name = path.removeprefix("/storage/v1/b/").partition("/o/")
            file = server.root / bucket / name.replace("%2F", "/")
        content = file.read_bytes() if file.is_file() else b"not found"
        self.send_response(200 if file.is_file() else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("x-goog-generation", "1")
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        exhausted = server.allowed is not None and sum(server.served.values()) >= server.allowed
        if server.interrupt[file.name] > 0 or exhausted:
            server.interrupt[file.name] -= 1
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)
        server.served[path] += 1

    do_HEAD = do_GET

    def log_message(self, *arguments):
        """Say nothing."""
