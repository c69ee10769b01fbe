"""An S3 server on loopback, and one that refuses all requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest
import requests

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def authorise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials in the environment, as a user does."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@contextmanager
def object_store() -> Iterator[str]:
    """Yield the endpoint of a real S3 server with one empty bucket, ``BUCKET``."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )
    requests.post(
        f"{endpoint}/moto-api/reset", timeout=10
    ).raise_for_status()  # all servers of a process share one store
    client.create_bucket(Bucket=BUCKET)
    try:
        yield endpoint
    finally:
        client.close()
        server.stop()


class Refusing(BaseHTTPRequestHandler):
    """Handler that answers every request as S3 answers wrong credentials."""

    def do_GET(self) -> None:
        body = (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        )
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    @classmethod
    @contextmanager
    def serve(cls) -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), cls)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
