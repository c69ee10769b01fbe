"""A comparison that takes seconds: networks of the tiny run, a handful of updates."""

from __future__ import annotations

from experiments.comparison.plan import Plan, Variant

OVERRIDES = (
    "teacher.steps=4", "teacher.gate=null", "teacher.mini.layers=2", "teacher.mini.heads=2",
    "teacher.mini.head_dim=16", "teacher.mini.ffn_dim=64", "teacher.mini.text_dim=32", "teacher.mini.steps=12",
    "teacher.mini.batch=16", "teacher.mini.checkpoint_every=4", "teacher.mini.threads=1", "trajectories.samples=40",
    "trajectories.shard_size=16", "train.checkpoint_every=4", "train.log_every=4", "train.threads=1",
    "select.samples=80", "select.bootstrap=5", "evaluate.samples=80", "evaluate.diversity_prompts=4",
    "evaluate.diversity_samples=5", "evaluate.timing_samples=4", "evaluate.bootstrap=5",
    "train.health.probe_every=null",
)  # fmt: skip
SMALL = ("train.batch=8", "method.warmup=2")

TINY = Plan(
    "mini",
    (
        Variant("rcm", "rcm", SMALL),
        Variant("kd", "kd", ("train.batch=8",)),
        Variant(
            "tbcm",
            "tbcm",
            ("train.batch=2", "method.trajectory_steps=5", "method.pairs=4", "method.warmup=2"),
        ),
    ),
    updates=6,
    seeds=(0,),
    overrides=OVERRIDES,
    preset="mini-train",
)
