"""Downloads against a server on this machine: resume, damage, absence, and processes that want the same file."""

import hashlib
import http.server
import io
import re
import subprocess
import sys
import threading
import time

import pytest

from bp.data import download as downloads
from bp.data.download import download
from bp.data.source import Source
from bp.errors import DataError

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves `content` under every path and keeps a list of the ranges asked for.

    cut: a connection ends after that many bytes of the body. ranges: Range is honoured. status: of every answer.
    lie: the Content-Length, in place of the true one; "" leaves it out. delay: seconds before an answer.
    """

    def __init__(self, content=CONTENT, *, cut=None, ranges=True, status=None, lie=None, shift=0, delay=0):
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.asked.append(asked)
                time.sleep(delay)
                if status is not None:
                    self.send_error(status)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and ranges else 0
                if start >= len(content):
                    self.send_error(416)
                    return
                body = content[start:]
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
                if lie != "":
                    self.send_header("Content-Length", str(len(body)) if lie is None else lie)
                self.end_headers()
                self.wfile.write(body[:cut])

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file.gz"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)
    monkeypatch.setenv("no_proxy", "*")
    running = []

    def start(*args, **settings):
        running.append(Server(*args, **settings))
        return running[-1]

    yield start
    for server in running:
        server.close()


def source(*servers):
    return Source("file.gz", len(CONTENT), SHA256, tuple(s if isinstance(s, str) else s.url for s in servers))


def test_a_file_is_fetched_once(serve, tmp_path):
    server = serve()
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert download(source(server), folder).read_bytes() == CONTENT
    assert server.asked == [None]
    assert sorted(p.name for p in folder.iterdir()) == [".file.gz.lock", "file.gz"]


def test_a_part_is_continued(serve, tmp_path):
    server = serve()
    (tmp_path / "file.gz.part").write_bytes(CONTENT[:1000])
    assert download(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-"]


def test_a_whole_part_needs_no_network(tmp_path):
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    assert download(source("http://127.0.0.1:1/"), tmp_path).read_bytes() == CONTENT


def test_a_connection_that_breaks_is_taken_up_where_it_ended(serve, tmp_path):
    server = serve(cut=100_000)
    assert download(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_attempts_are_bounded(serve, tmp_path):
    server = serve(cut=10)
    with pytest.raises(
        DataError, match=r"the connection ended after 200 of 256,000 bytes \(a later run continues there"
    ):
        download(source(server), tmp_path)
    assert len(server.asked) == downloads.ATTEMPTS
    assert (tmp_path / "file.gz.part").read_bytes() == CONTENT[:200] and not (tmp_path / "file.gz").exists()


def test_a_server_without_ranges_starts_over(serve, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(b"x" * 1000)
    assert download(source(serve(ranges=False)), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_that_breaks_is_not_asked_forever(serve, tmp_path):
    server = serve(ranges=False, cut=100)
    with pytest.raises(DataError, match="the connection ended after 100 of 256,000 bytes"):
        download(source(server), tmp_path)
    assert len(server.asked) == 2


def test_a_spoilt_part_is_fetched_again_from_the_start(serve, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(b"x" * 1000)
    server = serve()
    assert download(source(server), tmp_path).read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 500])
def test_a_part_that_is_too_long_or_wrong_is_thrown_away(serve, tmp_path, length):
    (tmp_path / "file.gz.part").write_bytes(b"x" * length)
    assert download(source(serve()), tmp_path).read_bytes() == CONTENT


def test_the_second_url_helps_where_the_first_fails(serve, tmp_path):
    bad = serve(status=404), serve(b"<html>log in here</html>"), serve(bytes(len(CONTENT)))
    assert download(source("http://127.0.0.1:1/", *bad, serve()), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"status": 404}, "HTTP status 404 Not Found"),
        ({"status": 503}, "HTTP status 503"),
        ({"content": CONTENT[:-1]}, "expected a file of 256,000 bytes, the server offers 255,999"),
        ({"content": CONTENT + b"!"}, "expected a file of 256,000 bytes, the server offers 256,001"),
        ({"content": CONTENT + b"!", "lie": ""}, f"expected sha256 {SHA256}, got .* over 256,001 bytes"),
        ({"content": CONTENT[:-1] + b"!"}, f"expected sha256 {SHA256}, got [0-9a-f]{{64}} over 256,000 bytes"),
        ({"cut": 0}, "the connection ended after 0 of 256,000 bytes"),
    ],
)
def test_a_server_with_the_wrong_answer(serve, tmp_path, settings, message):
    server = serve(**settings)
    with pytest.raises(DataError, match=f"file.gz could not be downloaded: {server.url}: .*{message}"):
        download(source(server), tmp_path)
    assert not (tmp_path / "file.gz").exists()
    part = tmp_path / "file.gz.part"
    assert not part.exists() or part.read_bytes() == b""


def test_a_server_that_sends_another_range(serve, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="expected the rest from byte 1000, got 'bytes 1001-"):
        download(source(serve(shift=1)), tmp_path)
    assert (tmp_path / "file.gz.part").read_bytes() == CONTENT[:1000]


def test_nobody_listens(tmp_path):
    with pytest.raises(DataError, match=r"127\.0\.0\.1:1/: .*[Rr]efused"):
        download(source("http://127.0.0.1:1/"), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file.sub: cannot hold the download of file\.gz"):
        download(source("http://127.0.0.1:1/"), tmp_path / "file" / "sub")


def test_several_processes_fetch_once(serve, tmp_path):
    server = serve(delay=1)  # the others have started by then
    code = (
        "from pathlib import Path; from bp.data.download import download; from bp.data.source import Source; "
        f"download(Source('file.gz', {len(CONTENT)}, '{SHA256}', ('{server.url}',)), Path({str(tmp_path)!r}))"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and errors == b"", errors  # and no progress bar in a pipe
    assert server.asked == [None] and (tmp_path / "file.gz").read_bytes() == CONTENT


def test_a_terminal_gets_a_progress_bar(serve, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    download(source(serve()), tmp_path)
    assert "file.gz" in terminal.getvalue() and "256.0" in terminal.getvalue()
