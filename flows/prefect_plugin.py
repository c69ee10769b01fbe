"""Prefect plugin: ``prefect`` uses our local server, and ``prefect deployment run rcm-distill`` completes the name.

Active with ``[plugins] enabled = true`` (prefect.toml in the project) or PREFECT_PLUGINS_ENABLED=1.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect.plugins import HookContext, SetupResult, register_hook
from prefect.settings import get_current_settings

from infra.prefect.server import known_api_url


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Complete the name of a deployment called like its flow, and use our own server if no API is set.

    In a server, SQLite's transactions lock before they read. A worker's temporary files are in Prefect's data folder.
    """
    if sys.argv[1:2] == ["server"]:
        _lock_before_reading()
    if sys.argv[1:2] == ["worker"]:
        _set_temporary_folder(get_current_settings().home / "temporary")
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient, DeploymentClient

    for client in (DeploymentClient, DeploymentAsyncClient):
        client.read_deployment_by_name = _completing(client.read_deployment_by_name)
    url = known_api_url(Path.cwd()) if ctx.api_url is None else None
    return SetupResult(env={"PREFECT_API_URL": url}) if url else None


def _set_temporary_folder(folder: Path) -> None:
    """Make ``folder`` the temporary folder of this process alone.

    Prefect's workers share <temporary folder>/runner_storage, which belongs to the first user of the machine who
    started one: the worker of a second user cannot write there. Flow runs keep the machine's temporary folder, because
    the paths of Ray's sockets must be short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)


def _lock_before_reading() -> None:
    """Begin every transaction of the server on SQLite as IMMEDIATE.

    Prefect begins most as DEFERRED. A DEFERRED transaction that reads and then writes fails at once with "database is
    locked" if another has written in between, whatever SQLite's timeout is
    (https://www.sqlite.org/lang_transaction.html).
    """
    from prefect.server.database.configurations import AioSqliteConfiguration

    begin = AioSqliteConfiguration.begin_transaction

    def begin_transaction(self: Any, session: Any, with_for_update: bool = False) -> Any:  # noqa: ARG001
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = begin_transaction


def _completing(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_deployment_by_name(self: Any, name: str) -> Any:
        return read(self, name if "/" in name else f"{name}/{name}")

    return read_deployment_by_name
