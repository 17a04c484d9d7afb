"""Any bytes over HTTP: an answer, or a refusal in OpenAI's form; never a 500, and nothing stays behind."""

from __future__ import annotations

import io
import json
import socket
from urllib.parse import urlsplit

import httpx2 as httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from tests.abuse.conftest import examples
from tests.abuse.limits import memory, patience
from tests.abuse.serving import MODEL, PATH, problem, wait_for
from tests.runtimes.server.conftest import Server

REFUSALS = {400, 401, 404, 405, 413, 415, 429}
NAMES = (
    "model", "language", "prompt", "response_format", "timestamp_granularities[]", "stream", "temperature", "include[]",
    "file", "text", "keywords[]", "",
)  # fmt: skip
PIECES = (
    MODEL, "", "de", "Japanese", "verbose_json", "srt", "vtt", "text", "word", "segment", "true", "0.5", "nan", "inf",
    "-1", "1e999", "<|im_end|>", "\ud800", "日本", "\u202e", "x" * 500, "[]", "{}", "null", "\x00",
)  # fmt: skip
CHARSETS = ("utf-8", "utf-16", "utf-7", "idna", "punycode", "undefined", "unicode_escape", "rot13", "hex", "nonsense")
TEXT = st.sampled_from(PIECES) | st.text(max_size=30)
ROUTES = (
    PATH,
    "/v1/audio/alignments",
    "/v1/models",
    "/v1/realtime",
    "/health",
    "/",
    "/metrics",
    "/v1/audio/translations",
)


def tone() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.sin(np.arange(4_000) / 9).astype(np.float32), 16_000, format="WAV")
    return file.getvalue()


TONE = tone()


def part(name: str, content: bytes, *, file: bool) -> bytes:
    named = f'; filename="{name}.wav"' if file else ""
    head = f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode("utf-8", "surrogatepass") + content + b"\r\n"


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Forms with odd fields, some of them broken further."""
    parts = [part("model", MODEL.encode(), file=False), part("file", TONE, file=True)]
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4)):
        content = draw(TEXT).encode("utf-8", "surrogatepass")
        parts.append(part(name, content, file=draw(st.integers(0, 4)) == 0))
    body = b"".join(draw(st.permutations(parts))) + b"--x--\r\n"
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 3)))):
        at = draw(st.integers(0, len(body)))
        cut = draw(st.integers(0, 60))
        body = body[:at] + draw(st.binary(max_size=8) | st.sampled_from((b"\r\n", b"--x", b'"'))) + body[at + cut :]
    return body


def judge(answer: httpx.Response) -> None:
    """Success, or a refusal that is documented, in OpenAI's form."""
    if answer.status_code == 200:
        return
    assert answer.status_code in REFUSALS, answer.text
    assert len(answer.content) < 5_000
    problem(answer)


@pytest.fixture(scope="module")
def http(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=20)


@examples(120)
@given(body=bodies(), charset=st.sampled_from(CHARSETS) | st.none(), route=st.sampled_from(ROUTES[:2]))
def test_any_form_is_answered(http: httpx.Client, body: bytes, charset: str | None, route: str) -> None:
    kind = "multipart/form-data; boundary=x" + (f"; charset={charset}" if charset else "")
    with patience(30), memory():
        answer = http.post(route, content=body, headers={"Content-Type": kind})
    judge(answer)


@examples(80)
@given(
    method=st.sampled_from("GET POST PUT DELETE PATCH OPTIONS HEAD".split()),
    path=st.sampled_from(ROUTES) | st.text(max_size=20).map(lambda text: f"/{text}"),
    query=st.dictionaries(TEXT, TEXT, max_size=2),
    kind=st.sampled_from(
        ("application/json", "multipart/form-data", "multipart/form-data; boundary=", "", "a/b; charset=")
    ),
    body=st.binary(max_size=60),
)
def test_any_request_is_answered(
    http: httpx.Client, method: str, path: str, query: dict[str, str], kind: str, body: bytes
) -> None:
    with patience(30):
        try:
            answer = http.request(method, path, params=query, content=body, headers={"Content-Type": kind})
        except (UnicodeError, httpx.InvalidURL):
            return  # this client cannot say it
    if method != "HEAD":
        judge(answer)
    assert answer.status_code in {200} | REFUSALS


@examples(60)
@given(data=st.binary(max_size=300) | st.lists(st.sampled_from((
    b"POST /v1/audio/transcriptions HTTP/1.1\r\n", b"Host: a\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: -1\r\n", b"Transfer-Encoding: chunked\r\n", b"Content-Type: multipart/form-data; boundary=x\r\n",
    b"\r\n", b"ffffffffffffffff\r\n", b"0\r\n\r\n", b"--x\r\n", b"GET /health HTTP/1.1\r\n", b"Upgrade: websocket\r\n",
    b"Connection: Upgrade\r\n", b"Sec-WebSocket-Version: 13\r\n", b"Expect: 100-continue\r\n", b"X: \xff\xfe\r\n",
)), max_size=9).map(b"".join))  # fmt: skip
def test_any_bytes_leave_the_server_alive(server: Server, http: httpx.Client, data: bytes) -> None:
    target = urlsplit(server.url)
    with patience(30), socket.create_connection((target.hostname, target.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            said = connection.recv(10_000)
        except (ConnectionError, TimeoutError):
            said = b""
    assert b" 500 " not in said[:20]
    assert http.get("/health").status_code == 200
    wait_for(lambda: server.app.state.lifecycle.running == 0)


# --- what was found --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("charset", ["undefined", "punycode"])
def test_a_charset_that_fails_in_its_own_way_is_refused(http: httpx.Client, charset: str) -> None:
    """Codecs that raise a plain UnicodeError used to be a 500."""
    body = part("model", b"\xff.\xff-\x80", file=False) + b"--x--\r\n"
    answer = http.post(
        PATH, content=body, headers={"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
    )
    judge(answer)
    assert answer.status_code == 400


@pytest.mark.parametrize(("name", "size"), [("language", 201), ("model", 201), ("prompt", 10_001), ("include[]", 201)])
def test_parameters_have_a_length(http: httpx.Client, name: str, size: int) -> None:
    """A megabyte of prompt was tokenised on the event loop, and a megabyte of language was sent back."""
    answer = http.post(PATH, files={"file": TONE}, data={"model": MODEL} | {name: "x" * size})
    assert (answer.status_code, problem(answer)["param"]) == (400, name)
    assert len(answer.content) < 500
    assert json.loads(answer.text)["error"]["message"].endswith(f"at most {size - 1} characters")
