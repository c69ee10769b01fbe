"""The flow ``watch-teacher``: emits ``teacher.updated`` once whenever the content of a teacher changes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import flow, get_run_logger
from prefect.events import emit_event
from prefect.variables import Variable

from flows.teacher_hash import reference_hash
from infra.params import load
from rcm_core.config.sections import TeacherSection
from rcm_core.pipelines.teacher_folder import TRAINED

EVENT = "teacher.updated"


@flow(name="watch-teacher")
def watch_teacher(teacher: str | None = None, endpoint: str | None = None) -> str | None:
    """Hash ``teacher`` (None: the teacher of params.yaml); return the hash if it is new, else None.

    The event's id depends on the hash and on the number of earlier contents. So a watch that died between emitting and
    remembering does not start a second run, and a teacher that returns to an earlier content starts one.
    """
    logger = get_run_logger()
    if teacher is None:
        section = load(Path.cwd()).teacher
        if (reason := reason_not_to_watch(section)) is not None:
            logger.info("nothing to watch: %s", reason)
            return None
        teacher, endpoint = section.source, section.endpoint
    slug = hashlib.sha256(teacher.encode()).hexdigest()[:16]
    variable = f"rcm_teacher_{slug}"
    found = reference_hash(teacher, endpoint)
    if (news := next_event(Variable.get(variable), slug, found)) is None:
        logger.info("%s is unchanged (%s)", teacher, found[:12])
        return None
    emit_event(
        event=EVENT,
        resource={"prefect.resource.id": f"rcm.teacher.{slug}", "prefect.resource.name": teacher},
        payload={"uri": teacher, "endpoint": endpoint or "", "hash": found},
        id=news[0],
    )
    Variable.set(variable, news[1], overwrite=True)
    logger.info("%s is new (%s): emitted %s", teacher, found[:12], EVENT)
    return found


def reason_not_to_watch(section: TeacherSection) -> str | None:
    """Return why the teacher of params.yaml cannot change, as a clause; None if it can."""
    if section.source == TRAINED:
        return "this project trains the teacher; to watch another, pass a folder or s3://bucket/prefix as teacher"
    if section.hash is not None:
        return (
            f"teacher.hash pins the content of {section.source}, and a run refuses any other; set teacher.hash to null"
            " to distil new content, or pass another folder or s3://bucket/prefix as teacher"
        )
    return None


def next_event(remembered: Any, slug: str, found: str) -> tuple[UUID, dict[str, Any]] | None:
    """Return the id of the event for the new content ``found`` of the teacher ``slug``, and the record to remember.

    Return None if ``found`` is the content in ``remembered``: None at first, then the last record, or a plain hash
    from earlier versions. The server drops an id that it has seen, so the id counts the earlier contents.
    """
    last, count = None, 0
    match remembered:
        case {"hash": str(last), "count": int(count)}:
            pass
        case str(last):
            count = 1
    if last == found:
        return None
    return uuid5(NAMESPACE_URL, f"{EVENT}/{slug}/{count}/{found}"), {"hash": found, "count": count + 1}
