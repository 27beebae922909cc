"""Whatever bytes come over the wire: what was asked for, or a ServerFault."""

import asyncio
import gzip
import json

from hypothesis import given
from hypothesis import strategies as st

from groupwise.servers.client import Client
from groupwise.servers.replies import ServerFault

BODY = json.dumps({"data": [{"id": "base", "parent": None}]}).encode()
STATUS = [b"HTTP/1.1 200 OK", b"HTTP/1.1 307 Moved", b"HTTP/1.1 101 Switching", b"HTTP/1.1 999 ?", b"HTTP/0.9", b"\xff"]
HEADERS = [
    b"Content-Length: %d" % len(BODY), b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: " + b"9" * 5000,
    b"Transfer-Encoding: chunked", b"Content-Encoding: gzip", b"Content-Encoding: deflate", b"Content-Encoding: x\xff",
    b"Content-Type: text/html; charset=\xff", b"Set-Cookie: a=\x01", b"Set-Cookie: b; Max-Age=-x; Expires=\xff",
    b"Location: http://[", b"Location: //\xff:99999999", b"Location: http:", b"Location: \x7f", b": ",
    b"Connection: close",
]  # fmt: skip
BODIES = [BODY, gzip.compress(BODY), b"", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"[" * 10**5, b"\x00" * 99]


async def models_from(said: bytes) -> dict[str, object] | ServerFault:
    """What a client makes of a server that says these bytes and hangs up."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    async with server, Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as client:
        try:
            return dict(await client.models())
        except ServerFault as fault:
            return fault


def reply(status: bytes, headers: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([status, *headers, b"", b""]) + body


def test_the_bytes_of_a_right_reply_are_read() -> None:
    said = reply(STATUS[0], [b"Content-Length: %d" % len(BODY)], BODY)
    assert asyncio.run(models_from(said)) == {"base": {"id": "base", "parent": None}}


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            reply,
            st.sampled_from(STATUS),
            st.lists(st.one_of(st.sampled_from(HEADERS), st.binary(max_size=20)), max_size=4),
            st.one_of(st.sampled_from(BODIES), st.binary(max_size=50)),
        ),
    )
)
def test_any_other_bytes_are_a_fault(said: bytes) -> None:
    """No exception of the HTTP library comes through, which would end a run."""
    found = asyncio.run(models_from(said))
    assert isinstance(found, ServerFault) or found == {"base": {"id": "base", "parent": None}}
