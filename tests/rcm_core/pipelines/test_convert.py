"""Raw checkpoints become complete pipelines or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import build
from safetensors.torch import save_file
from torch import Tensor

from infra import cli
from infra.commands.families import family_of
from rcm_core.models import cosmos, wan

# diffusers' name -> the original file's name, part by part, as in the releases
WAN = {
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q", "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q", "attn2.norm_k": "cross_attn.norm_k",
    "norm2": "norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "scale_shift_table": "modulation",
}  # fmt: skip
COSMOS = {
    "patch_embed.proj": "x_embedder.proj.1", "time_embed.t_embedder": "t_embedder.1",
    "time_embed.norm": "t_embedding_norm", "transformer_blocks": "blocks",
    "norm_out.linear_1": "final_layer.adaln_modulation.1", "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
    "norm1.linear_1": "adaln_modulation_self_attn.1", "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1", "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1", "norm3.linear_2": "adaln_modulation_mlp.2",
    "attn1.to_q": "self_attn.q_proj", "attn1.to_k": "self_attn.k_proj", "attn1.to_v": "self_attn.v_proj",
    "attn1.to_out.0": "self_attn.output_proj", "attn1.norm_q": "self_attn.q_norm", "attn1.norm_k": "self_attn.k_norm",
    "attn2.to_q": "cross_attn.q_proj", "attn2.to_k": "cross_attn.k_proj", "attn2.to_v": "cross_attn.v_proj",
    "attn2.to_out.0": "cross_attn.output_proj", "attn2.norm_q": "cross_attn.q_norm",
    "attn2.norm_k": "cross_attn.k_norm", "ff.net.0.proj": "mlp.layer1", "ff.net.2": "mlp.layer2",
}  # fmt: skip


def original(name: str, parts: dict[str, str]) -> str:
    for ours in sorted(parts, key=len, reverse=True):
        name = name.replace(ours, parts[ours])
    return "head." + name if name == "modulation" else name


@pytest.fixture
def like(tmp_path: Path) -> Path:
    build("wan", tmp_path / "like")
    return tmp_path / "like"


def drawn(folder: Path, seed: int) -> dict[str, Tensor]:
    """Draw new weights for the network in ``folder``, under diffusers' names."""
    rng = torch.Generator().manual_seed(seed)
    network = family_of(folder).load_network(folder)
    return {name: torch.randn(value.shape, generator=rng) for name, value in network.state_dict().items()}


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> tuple[int, str]:
    """Return exit status and output."""
    monkeypatch.setattr("sys.argv", ["rcm", "convert", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out + said.err


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[n], v) for n, v in expected.items())


def test_wan_s_own_layout_in_several_files(like, tmp_path, monkeypatch, capsys):
    weights = drawn(like, 1)
    raw = {original(name, WAN): value for name, value in weights.items()}
    assert "blocks.0.self_attn.q.weight" in raw
    assert "head.modulation" in raw
    half = len(raw) // 2
    (tmp_path / "raw").mkdir()
    for i, part in enumerate((dict(list(raw.items())[:half]), dict(list(raw.items())[half:]))):
        save_file(part, tmp_path / f"raw/diffusion_pytorch_model-{i + 1:05d}-of-00002.safetensors")
    status, said = run(monkeypatch, capsys, tmp_path / "raw", "--like", like, "--out", tmp_path / "out")
    assert (status, said.strip()) == (
        0,
        f"{tmp_path / 'out'}: {sum(v.numel() for v in weights.values()):,} parameters",
    )
    wan.check_folder(tmp_path / "out")
    assert same(dict(wan.load_network(tmp_path / "out").state_dict()), weights)
    assert (tmp_path / "out/tokenizer").is_dir()


@pytest.mark.parametrize("asked", [None, "ema", "net"])
def test_a_checkpoint_of_rcm_has_an_average_and_linear_patches(asked, like, tmp_path, monkeypatch, capsys):
    """NVlabs/rcm embeds patches by a linear layer whose inputs are ordered (channel, frame, row, column)."""
    both = {"net.": drawn(like, 1), "net_ema.": drawn(like, 2)}
    raw = {f"{prefix}{original(n, WAN)}": v for prefix, weights in both.items() for n, v in weights.items()}
    for prefix in both:
        raw[f"{prefix}patch_embedding.weight"] = raw[f"{prefix}patch_embedding.weight"].flatten(1)
    raw["net._extra_state"] = torch.zeros(1)
    torch.save({"model": raw}, tmp_path / "raw.pth")
    words = [tmp_path / "raw.pth", "--like", like, "--out", tmp_path / "out"]
    assert run(monkeypatch, capsys, *words, *(["--weights", asked] if asked else []))[0] == 0
    expected = both["net." if asked == "net" else "net_ema."]
    assert same(dict(wan.load_network(tmp_path / "out").state_dict()), expected)


def test_cosmos_own_layout(tmp_path, monkeypatch, capsys):
    build("cosmos", tmp_path / "like")
    weights = drawn(tmp_path / "like", 3)
    raw = {f"net.{original(name, COSMOS)}": value for name, value in weights.items()}
    flat = raw["net.x_embedder.proj.1.weight"]
    raw |= {"net.x_embedder.proj.1.weight": flat, "net.accum_iteration": torch.zeros(1)}
    raw["net.pos_embedder.seq"] = torch.zeros(4)
    torch.save(raw, tmp_path / "model.pt")
    words = [tmp_path / "model.pt", "--like", tmp_path / "like", "--out", tmp_path / "out"]
    assert run(monkeypatch, capsys, *words)[0] == 0
    assert same(dict(cosmos.load_network(tmp_path / "out").state_dict()), weights)


def refused(like, tmp_path, monkeypatch, capsys, checkpoint, *words) -> str:
    """Return the error, after checking that it is one sentence and that nothing was written."""
    out = tmp_path / "out"
    status, said = run(monkeypatch, capsys, checkpoint, "--like", like, "--out", out, *words)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    return said


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_what_is_not_the_network_is_not_converted(damage, like, tmp_path, monkeypatch, capsys):
    raw = {original(name, WAN): value for name, value in drawn(like, 1).items()}
    if damage == "missing":
        del raw["head.head.bias"]
    elif damage == "extra":
        raw["img_emb.proj.0.weight"] = torch.zeros(3)
    else:
        raw["head.head.bias"] = torch.zeros(3)
    save_file(raw, tmp_path / "raw.safetensors")
    said = refused(like, tmp_path, monkeypatch, capsys, tmp_path / "raw.safetensors")
    assert "1 tensors differ" in said
    assert ("img_emb.proj.0.weight" if damage == "extra" else "proj_out.bias") in said


def test_other_bad_input(like, tmp_path, monkeypatch, capsys):
    given = (like, tmp_path, monkeypatch, capsys)
    assert "does not exist" in refused(*given, tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    assert "holds no safetensors files" in refused(*given, tmp_path / "empty")
    (tmp_path / "bad.pth").write_bytes(b"no pickle")
    assert "no file of tensors that can be read safely" in refused(*given, tmp_path / "bad.pth")
    torch.save({"net.a": torch.zeros(1)}, tmp_path / "net.pth")
    assert "it has net;" in refused(*given, tmp_path / "net.pth", "--weights", "ema")
    assert "expected ema or net" in refused(*given, tmp_path / "net.pth", "--weights", "best")
    build("sana", tmp_path / "sana")
    assert "without raw checkpoints" in refused(tmp_path / "sana", *given[1:], tmp_path / "net.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refused(*given, tmp_path / "list.pth")


def test_a_pickle_of_code_is_not_run(like, tmp_path, monkeypatch, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"net.a": Evil()}, tmp_path / "evil.pth")
    assert "can be read safely" in refused(like, tmp_path, monkeypatch, capsys, tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()
