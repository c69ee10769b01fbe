"""A teacher is complete or refused in one sentence, for every kind of damage to every part, without reading weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BUILDERS, build, clip, t5
from safetensors.torch import load_file, save_file

from rcm_core.errors import InputError
from rcm_core.registry import find

Spoil = Callable[[Path], object]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 12345\n"
NETWORK = "diffusion_pytorch_model.safetensors"
WEIGHTS = {"transformer": NETWORK, "vae": NETWORK, "text_encoder": "model.safetensors"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A read-only pipeline of every family."""
    root = tmp_path_factory.mktemp("families")
    for name in BUILDERS:
        build(name, root / name)
    return {name: root / name for name in BUILDERS}


def edit(place: str, **changes: Any) -> Spoil:
    """Set keys of a JSON file; None as a value is null, ``...`` removes the key."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / place).read_text()) | changes
        (folder / place).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return spoil


def weights(part: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Return a function that changes the tensors of a part."""

    def spoil(folder: Path) -> None:
        path = folder / part / WEIGHTS[part]
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


def write(place: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / place).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def cut(place: str) -> Spoil:
    """Truncate a file to its first half, as an interrupted download does."""
    return lambda f: (f / place).write_bytes((f / place).read_bytes()[: (f / place).stat().st_size // 2])


def recast(kind: torch.dtype) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({k: v.to(kind) for k, v in tensors.items()})


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(name for name, value in tensors.items() if value.ndim)


def wrong_index(part: str, weight_map: Any) -> Spoil:
    """Replace the plain file by an index; ``weight_map`` may be a function of the file's tensors."""

    def spoil(folder: Path) -> None:
        path = folder / part / WEIGHTS[part]
        names = list(load_file(path))
        for shard in ("a.safetensors", "b.safetensors"):
            shutil.copy(path, path.with_name(shard))
        path.unlink()
        found = weight_map(names) if callable(weight_map) else weight_map
        path.with_name(f"{path.name}.index.json").write_text(json.dumps({"weight_map": found}))

    return spoil


def few_tokens(folder: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=4, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder / "text_encoder")


INDEX, CONFIG, TEXT = "model_index.json", "transformer/config.json", "text_encoder/config.json"
DAMAGES: dict[str, tuple[str, Spoil, str]] = {
    "index: vae a string": ("wan", edit(INDEX, vae="PixelSpace"), r'has vae = "PixelSpace"; expected \[library'),
    "index: vae null": ("wan", edit(INDEX, vae=None), r"has vae = null; expected \[library, class\]: fetch"),
    "index: vae one entry": ("wan", edit(INDEX, vae=["diffusers"]), r'has vae = \["diffusers"\]; expected'),
    "index: vae nulls": ("cosmos", edit(INDEX, vae=[None, None]), r"has vae = \[null, null\]; expected"),
    "index: transformer_2 null": ("wan", edit(INDEX, transformer_2=None), r"has transformer_2 = null; expected .* or"),
    "index: numbers": ("wan", edit(INDEX, tokenizer=[1, 2]), r"has tokenizer = \[1, 2\]; expected"),
    "index: no scheduler": ("wan", edit(INDEX, scheduler=...), "has scheduler = null; expected"),
    "index: part that is absent": ("sd3", edit(INDEX, image_encoder=["transformers", "A"]), "lacks image_encoder"),
    "index: text encoder of another type": (
        "wan", edit(INDEX, text_encoder=["transformers", "CLIPTextModel"]), "names text_encoder CLIPTextModel, but",
    ),
    "index: a list": ("wan", write(INDEX, "[]"), r"model_index\.json holds .*; expected a JSON object"),
    "index: not JSON": ("wan", write(INDEX, "{"), r"model_index\.json is not JSON"),
    "index: nested deeply": ("wan", write(INDEX, '{"a":' + 200_000 * "["), r"model_index\.json is not JSON"),
    "index: pointer": ("wan", write(INDEX, POINTER), r"model_index\.json is a git-lfs pointer"),
    "config: layers a string": ("wan", edit(CONFIG, num_layers="2"), "builds no network .TypeError"),
    "config: layers without end": ("wan", edit(CONFIG, num_layers=10**9), r"has num_layers = 10+; expected at most"),
    "config: zero heads": ("wan", edit(CONFIG, num_attention_heads=0), "builds no network .ZeroDivisionError"),
    "config: negative width": ("wan", edit(CONFIG, attention_head_dim=-16), "builds no network .RuntimeError"),
    "config: patch null": ("wan", edit(CONFIG, patch_size=None), "builds no network .TypeError"),
    "config: unknown key": ("wan", edit(CONFIG, hello=1), "has hello, which the installed diffusers does not know"),
    "config: quantised": ("sd3", edit(CONFIG, quantization_config={"a": 1}), "has a quantization_config"),
    "config: dropout": ("sana", edit(CONFIG, dropout=0.3), r"has dropout \(dropout = 0\.3\)"),
    "vae: quantised": ("sd3", edit("vae/config.json", quantization_config={"a": 1}), "AutoencoderKL has a quantiz"),
    "vae: another class": ("cosmos", edit("vae/config.json", _class_name="AutoencoderKL"), "but vae/config.json is of"),
    "vae: cannot build": ("cosmos", edit("vae/config.json", base_dim="4"), "vae cannot be loaded .TypeError"),
    "vae: other widths": ("cosmos", edit("vae/config.json", base_dim=8), "vae "),
    "vae: tensor missing": ("cosmos", weights("vae", lambda w: w.pop(first(w))), r"vae differs from .* is missing"),
    "text: quantised": ("wan", edit(TEXT, quantization_config={"a": 1}), "text_encoder/config.json has a quantiz"),
    "text: another class": ("wan", edit(TEXT, model_type="t5"), "a text encoder of the type t5, but this family loads"),
    "text: cannot build": ("wan", edit(TEXT, num_layers="2"), "text_encoder cannot be loaded"),
    "text: no class of transformers": ("sana", edit(TEXT, model_type=["gemma2"]), "of the type"),
    "text: tensor missing": ("wan", weights("text_encoder", lambda w: w.pop("shared.weight")), "differs from its conf"),
    "text: other widths": (
        "cosmos", lambda f: (shutil.rmtree(f / "text_encoder"), t5(32).save_pretrained(f / "text_encoder")),
        "gives text 32 wide, but the network takes 16",
    ),
    "text: other projections": (
        "sd3", lambda f: (shutil.rmtree(f / "text_encoder"), clip(32).save_pretrained(f / "text_encoder")),
        "CLIP encoders that project to 32 and 8, but its network takes 24",
    ),
    "text: too few tokens": ("cosmos", few_tokens, r"tokenizer has \d+ tokens, but its text encoder knows 4"),
    "tokenizer: not JSON": ("wan", write("tokenizer/tokenizer.json", "{x"), r"tokenizer\.json is not JSON"),
    "tokenizer: other JSON": ("wan", write("tokenizer/tokenizer.json", '{"a": 1}'), "holds no tokenizer"),
    "tokenizer: pointer": ("wan", write("tokenizer/tokenizer.json", POINTER), "is a git-lfs pointer"),
    "tokenizer: empty folder": (
        "longcat", lambda f: (shutil.rmtree(f / "tokenizer"), (f / "tokenizer").mkdir()), "holds no tokenizer",
    ),
    "tokenizer: absent": ("sd3", lambda f: shutil.rmtree(f / "tokenizer_3"), "tokenizer_3 is missing"),
    "tokenizer: no padding": ("wan", edit("tokenizer/tokenizer_config.json", pad_token=None), "has no padding token"),
    "scheduler: not JSON": ("wan", write("scheduler/scheduler_config.json", "{"), "is not JSON"),
    "scheduler: unknown": ("wan", edit("scheduler/scheduler_config.json", _class_name="Mine"), "the class 'Mine',"),
    "scheduler: absent": ("wan", lambda f: (f / "scheduler/scheduler_config.json").unlink(), "holds no scheduler/"),
    "link that leads nowhere": ("wan", lambda f: (f / "vae/more").symlink_to("nowhere"), "links to nowhere"),
}  # fmt: skip
for part, file in WEIGHTS.items():
    family = "wan" if part == "text_encoder" else "cosmos"
    place = f"{part}/{file}"
    plain = file.removesuffix(".safetensors")
    DAMAGES |= {
        f"{part}: absent": (family, lambda f, p=place: (f / p).unlink(), f"{part} holds no weights"),
        f"{part}: variant only": (
            family, lambda f, p=place, n=plain: (f / p).rename((f / p).with_name(f"{n}.fp16.safetensors")),
            "only the variant fp16: set teacher.variant to fp16",
        ),
        f"{part}: pickled only": (
            family, lambda f, p=place: (f / p).rename((f / p).with_name("pytorch_model.bin")),
            "only pytorch_model.bin: export the teacher with safe_serialization",
        ),
        f"{part}: pointer": (family, write(place, POINTER), "is a git-lfs pointer"),
        f"{part}: empty": (family, write(place, b""), "is not a safetensors file"),
        f"{part}: cut short": (family, cut(place), "is not a safetensors file"),
        f"{part}: fp8": (family, weights(part, recast(torch.float8_e4m3fn)), "tensors in F8_E4M3, first: "),
        f"{part}: int8": (family, weights(part, recast(torch.int8)), "tensors in I8, first: "),
        f"{part}: another shape": (
            family, weights(part, lambda w: w.update({first(w): torch.zeros(1, 2, 3, 4, 5, 6)})), f"{part} ",
        ),
        f"{part}: index without a map": (family, wrong_index(part, []), "has no weight_map"),
        f"{part}: index with paths": (family, wrong_index(part, {"a": "../x.safetensors"}), "as a shard; expected"),
        f"{part}: index with numbers": (family, wrong_index(part, {"a": 3}), "names 3 as a shard; expected"),
        f"{part}: index of what is not there": (
            family, wrong_index(part, {"a": "a.safetensors", "b": "b.safetensors"}), "holds a, but it does not",
        ),
        f"{part}: a shard missing": (
            family, wrong_index(part, lambda names: dict.fromkeys(names, "c.safetensors")), "lacks 1 of the 1 shards",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("family", BUILDERS)
def test_a_whole_pipeline_is_accepted_in_silence(
    whole: dict[str, Path], family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    find("models", family).check_folder(whole[family])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damage_is_one_sentence(whole: dict[str, Path], tmp_path: Path, damage: str) -> None:
    family, spoil, said = DAMAGES[damage]
    folder = tmp_path / "pipeline"
    shutil.copytree(whole[family], folder)
    spoil(folder)
    with pytest.raises(InputError, match=said) as caught:
        find("models", family).check_folder(folder)
    assert "\n" not in str(caught.value)


def test_parts_that_a_codec_can_do_without_may_be_absent(whole: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shutil.copytree(whole["sd3"], folder)
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    find("models", "sd3").check_folder(folder)
    edit(INDEX, text_encoder_3=[None, None], boundary_ratio=None, image_encoder=[None, None])(folder)
    find("models", "sd3").check_folder(folder)


def test_text_encoders_in_shards_are_whole(whole: dict[str, Path], tmp_path: Path) -> None:
    from transformers import UMT5EncoderModel

    folder = tmp_path / "pipeline"
    shutil.copytree(whole["wan"], folder)
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    (folder / "text_encoder/model.safetensors").unlink()
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="4KB")
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) > 1
    find("models", "wan").check_folder(folder)
