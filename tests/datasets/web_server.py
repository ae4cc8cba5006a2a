"""A web server on this machine that misbehaves as it is told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Page:
    """What is at an address, and how it is served.

    Attributes:
        content: the bytes.
        tag: the ETag, if any.
        modified: the date of the last change, if any.
        ranges: whether a request for a part is answered with that part.
        length: whether the length is announced.
        tries: what happens at each request in turn; after the last, all goes well. "cut N" and "stall N" happen after
            N bytes of the body, "status N" answers N, "flip N" changes byte N, "more N" sends N bytes too many.
        redirect: where every request is sent to, if anywhere.
    """

    content: bytes
    tag: str = ""
    modified: str = ""
    ranges: bool = True
    length: bool = True
    tries: list[str] = field(default_factory=list)
    redirect: str = ""


class Server(ThreadingHTTPServer):
    """Pages by path, and a log of the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.release = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def add(self, path: str, content: bytes = b"", **options: Any) -> str:
        self.pages[path] = Page(content, **options)
        return self.url(path)

    def ranges(self, path: str) -> list[str]:
        """What part each request for a page asked for; "" for the whole."""
        return [headers.get("Range", "") for asked, headers in self.requests if asked == path]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        page = self.server.pages.get(self.path)
        if page is None:
            return self.send_error(404)
        action, _, value = (page.tries.pop(0) if page.tries else "").partition(" ")
        if action == "status":
            return self.send_error(int(value))
        if page.redirect:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_body(page, action, int(value or 0))

    def send_body(self, page: Page, action: str, value: int) -> None:
        content = bytearray(page.content)
        start = self.wanted_start(page)
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if action == "flip":
            content[value] ^= 0xFF
        self.send_response(206 if start else 200)
        for name, text in (("ETag", page.tag), ("Last-Modified", page.modified)):
            if text:
                self.send_header(name, text)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if page.length:
            self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Connection", "close")
        self.end_headers()
        body = bytes(content[start:])
        if action in ("cut", "stall"):
            body = body[:value]
        self.wfile.write(body + b"x" * (value if action == "more" else 0))
        self.wfile.flush()
        if action == "stall":
            self.server.release.wait(10)

    def wanted_start(self, page: Page) -> int:
        """First byte that the request asks for; 0 if the whole is sent."""
        wanted, condition = self.headers.get("Range", ""), self.headers.get("If-Range")
        if not page.ranges or not wanted or (condition and condition not in (page.tag, page.modified)):
            return 0
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@contextmanager
def running_server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
