"""A stage's connection to its flow run: gets Ray's address, and ends the stage if the run ends."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading

CLUSTER = "RCM_CLUSTER"
NO_RAY = "no Ray: "
"""Prefix of an answer that gives the reason why Ray did not start."""


class Lifeline:
    """Connection to the keeper named by ``RCM_CLUSTER`` (``infra.ray.cluster``)."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._asked = self._closed = False
        self._thread = threading.Thread(target=self._listen, daemon=True, name="lifeline")
        self._thread.start()

    def ask(self) -> None:
        """Request Ray's address, so that Ray starts while this process imports."""
        self._asked = True
        self._socket.sendall(b"?")

    def address(self) -> str:
        """Return Ray's address; RuntimeError if it did not start."""
        if not self._asked:
            self.ask()
        answer = self._answers.get()
        if answer.startswith(NO_RAY):
            raise RuntimeError(f"Ray did not start: {answer.removeprefix(NO_RAY)}")
        return answer

    def close(self) -> None:
        """Disconnect: afterwards this process does not end with the run."""
        self._closed = True
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        with self._socket.makefile() as lines:
            for line in lines:
                self._answers.put(line.strip())
        if not self._closed:
            os.kill(os.getpid(), signal.SIGTERM)


def connect() -> Lifeline | None:
    """Return the connection to this process's flow run, or None if it belongs to none."""
    address = os.environ.get(CLUSTER)
    return Lifeline(address) if address else None
