"""Pipelines whose weights have variants (``model.fp16.safetensors``): a folder of links gives one variant plain names.

Loaders know only plain names, so they load that variant.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from rcm_core.errors import InputError
from rcm_core.pipelines.headers import ENCODER, NETWORK, read_part, variants
from rcm_core.pipelines.loaded_files import loaded_files
from rcm_core.storage.files import atomic_folder
from rcm_core.storage.hashes import cache_root
from rcm_core.storage.pipeline_files import INDEX, pipeline_files, signatures


def plain_view(folder: Path, variant: str) -> Path:
    """Return a folder in the user's cache that links, under plain names, to the files of the pipeline ``folder`` that
    ``from_pretrained`` loads with ``variant``. Parts without that variant have their plain files, as in diffusers.

    InputError if no part has the variant.
    """
    files = pipeline_files(folder)
    chosen = loaded_files(list(files), read_part(folder, INDEX), variant)
    plain = {plain_name(name, variant): files[name] for name in chosen}
    if plain.keys() == set(chosen):
        kinds = (variants((path.name for path in files.values()), name) for name in (NETWORK, ENCODER))
        known = [repr(name) for name in sorted({name for names in kinds for name in names})]
        raise InputError(
            f"{folder} has no weights of the variant {variant!r}, only {', '.join([*known, 'plain ones'])}; set"
            " teacher.variant to one that it has, or to null"
        )
    state = [str(folder.absolute()), variant, sorted(signatures(folder).items())]
    place = cache_root() / "variants" / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    if not place.is_dir():
        with atomic_folder(place) as view:
            for name, path in plain.items():
                (view / name).parent.mkdir(parents=True, exist_ok=True)
                (view / name).symlink_to(path.resolve())
    return place


def plain_name(name: str, variant: str) -> str:
    """Return ``name`` without ``variant``; names of shards stay, because the index has them."""
    whole = re.sub(rf"\.{re.escape(variant)}\.safetensors$", ".safetensors", name)
    return re.sub(rf"\.safetensors\.index\.{re.escape(variant)}\.json$", ".safetensors.index.json", whole)
