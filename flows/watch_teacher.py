"""The flow ``watch-teacher``: emits ``teacher.updated`` once for every new content of a teacher reference."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from prefect import flow, get_run_logger
from prefect.events import emit_event
from prefect.variables import Variable

from infra.params import load
from infra.reference import reference_hash

EVENT = "teacher.updated"


@flow(name="watch-teacher")
def watch_teacher(teacher: str | None = None, endpoint: str | None = None) -> str | None:
    """Hashes ``teacher`` (None: what params.yaml names); returns the hash if it is new, else None.

    The event's id follows from the hash, so that a watch that died between emitting and remembering does not
    start a second run.
    """
    logger = get_run_logger()
    if teacher is None:
        section = load(Path.cwd()).teacher
        teacher, endpoint = section.source, section.endpoint
    if teacher == "mini":
        logger.info(
            "the embedded teacher is trained here: nothing to watch; set teacher to a folder or s3://"
        )
        return None
    slug = hashlib.sha256(teacher.encode()).hexdigest()[:16]
    variable = f"rcm_teacher_{slug}"
    found = reference_hash(teacher, endpoint)
    if Variable.get(variable) == found:
        logger.info("%s is unchanged (%s)", teacher, found[:12])
        return None
    emit_event(
        event=EVENT,
        resource={"prefect.resource.id": f"rcm.teacher.{slug}", "prefect.resource.name": teacher},
        payload={"uri": teacher, "endpoint": endpoint or "", "hash": found},
        id=uuid5(NAMESPACE_URL, f"{EVENT}/{slug}/{found}"),
    )
    Variable.set(variable, found, overwrite=True)
    logger.info("%s is new (%s): emitted %s", teacher, found[:12], EVENT)
    return found
