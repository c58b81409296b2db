"""As much of an S3 server as reading a bucket takes: a folder is served as the bucket's contents."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@contextmanager
def serve_bucket(folder: Path, bucket: str) -> Iterator[tuple[str, list[str]]]:
    """The address of the server, and the keys that were fetched from it, as they are."""
    fetched: list[str] = []

    class Handler(_Bucket):
        root, name, log = folder, bucket, fetched

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


class _Bucket(BaseHTTPRequestHandler):
    root: Path
    name: str
    log: list[str]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Not on the tests' output."""

    def _answer(self, *, with_body: bool) -> None:
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        file = self.root / key
        if bucket != self.name:
            self._send(404, b"", with_body)
        elif "list-type" in query:
            self._send(200, self._listing(query.get("prefix", ""), query.get("delimiter", "")), with_body)
        elif key and file.is_file():
            if with_body:
                self.log.append(key)
            self._send_part(file.read_bytes(), with_body)
        else:
            self._send(200 if not key else 404, b"", with_body)

    def _send_part(self, content: bytes, with_body: bool) -> None:
        asked = self.headers.get("Range")
        if asked is None:
            self._send(200, content, with_body)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) if last else len(content) - 1, len(content) - 1)
        self._send(206, content[begin : end + 1], with_body, f"bytes {begin}-{end}/{len(content)}")

    def _send(self, status: int, body: bytes, with_body: bool, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
        self.send_header("ETag", '"0"')
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _listing(self, prefix: str, delimiter: str) -> bytes:
        keys = [file.relative_to(self.root).as_posix() for file in sorted(self.root.rglob("*")) if file.is_file()]
        keys = [key for key in keys if key.startswith(prefix)]
        folders: list[str] = []
        if delimiter:
            deeper = {prefix + key[len(prefix) :].split("/")[0] + "/" for key in keys if "/" in key[len(prefix) :]}
            folders, keys = sorted(deeper), [key for key in keys if "/" not in key[len(prefix) :]]
        files = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{(self.root / key).stat().st_size}</Size>"
            "<LastModified>2025-01-01T00:00:00.000Z</LastModified></Contents>"
            for key in keys
        )
        common = "".join(f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders)
        count = len(keys) + len(folders)
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>{self.name}</Name><Prefix>{escape(prefix)}</Prefix>'
            f"<KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{files}{common}</ListBucketResult>"
        ).encode()
