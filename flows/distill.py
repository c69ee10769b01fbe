"""The flow ``rcm-distill``: the eight stages in order."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.artifacts import publish_results, set_progress, start_progress
from flows.tasks import RETRY_DELAYS, run_stage
from infra.params import compose, load, teacher_overrides
from infra.prefect.pace import STAGES
from infra.ray.cluster import shared_cluster
from infra.workspace import environment, finish, open_workspace, run_name


@flow(name="rcm-distill")
def rcm_distill(
    overrides: list[str] | None = None,
    teacher: str | None = None,
    name: str | None = None,
    in_place: bool = False,
    endpoint: str | None = None,
) -> str:
    """Distil the teacher once and return the report's path.

    overrides: Hydra overrides as for ``dvc exp run -S``, e.g. ``["method=scm", "train.batch=32"]``.
    teacher: a name in conf/teacher, a folder, or ``s3://bucket/prefix``; None: the teacher of params.yaml.
    name: name of the run and of the DVC experiment that saves it; None: the flow run's name.
    in_place: work in the project's own folder instead of a git worktree.
    endpoint: URL of the S3 service that holds ``teacher``; None: the provider's own.
    """
    logger = get_run_logger()
    run = run_name(name, str(flow_run.get_name()), str(flow_run.get_id()))
    with open_workspace(Path.cwd(), run, in_place) as space:
        logger.info("run %s works in %s", run, space.path)
        changes = [*(overrides or []), *teacher_overrides(space.path, teacher, endpoint)]
        params = compose(space.path, changes) if changes else load(space.path)
        plain = environment(space, {})
        # In a terminal an outage fails the run soon; an unattended run retries for a day until the storage answers.
        attempt = run_stage.with_options(retries=len(RETRY_DELAYS)) if in_place else run_stage
        progress = start_progress("progress", run)
        with shared_cluster(space.path, plain) as cluster:
            for number, stage in enumerate(STAGES):
                set_progress(progress, number, len(STAGES), stage)
                # An external teacher is hashed in every run, and DVC compares the hash.
                again = stage == "teacher" and params.teacher.source != "mini"
                attempt(stage, space, plain | cluster, force=again)
        set_progress(progress, len(STAGES), len(STAGES), "done")
        publish_results(space.path, space.report)
        finish(space)
    logger.info("report: %s", space.report)
    return os.fspath(space.report)
