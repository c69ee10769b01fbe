"""Contract of the kernels: every backend agrees with the definition, autograd and PyTorch's attention."""

import pytest
import torch
from attention_cases import BACKENDS, CASES, draw, explicit, masks, oracle
from rcm_kernels import attention, attention_jvp
from rcm_kernels.attention_jvp import chunked
from rcm_kernels.dispatch import LONG_KEYS, choose_backend
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Use block sizes that give several blocks, the last one partial, at test sizes."""
    monkeypatch.setattr(chunked, "BLOCK", 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "name"), CASES)
def test_e31_e32_output_tangent_and_gradients_are_those_of_the_definition(shape, name, backend):
    options = masks(shape)[name]
    primals, tangents = draw(shape), draw(shape, 1)
    value, moved = torch.func.jvp(oracle(options), primals, tangents)
    leaves = [x.clone().requires_grad_() for x in primals]
    out, tangent = attention_jvp(*leaves, *tangents, backend=backend, **options)
    torch.testing.assert_close(out.detach(), value, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(tangent, moved, atol=1e-12, rtol=1e-12)
    assert not tangent.requires_grad
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = torch.autograd.grad(out, leaves, upstream)
    expected = torch.autograd.grad(oracle(options)(*leaves), leaves, upstream)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "causal", "boolean", "additive"])
def test_output_is_that_of_pytorch(name, backend):
    options = masks("odd")[name]
    primals = draw("odd")
    torch.testing.assert_close(
        attention_jvp(*primals, backend=backend, **options)[0],
        scaled_dot_product_attention(*primals, **options),
        atol=1e-12,
        rtol=1e-12,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("present", ["q", "k", "v", "qk", "qv", "kv", ""])
def test_missing_tangents_are_zero_and_the_tangent_is_linear(present, backend):
    primals, tangents = draw("odd"), draw("odd", 1)
    given = [x if name in present else None for name, x in zip("qkv", tangents)]
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(given, tangents)]
    found = attention_jvp(*primals, *given, backend=backend)[1]
    torch.testing.assert_close(
        found, attention_jvp(*primals, *filled, backend=backend)[1], atol=1e-14, rtol=0
    )
    doubled = [None if g is None else 2 * g for g in given]
    torch.testing.assert_close(
        attention_jvp(*primals, *doubled, backend=backend)[1], 2 * found, atol=1e-14, rtol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_keys_is_zero_in_value_tangent_and_gradient(backend):
    mask = torch.ones(7, 13, dtype=torch.bool)
    mask[3] = False
    leaves = [x.requires_grad_() for x in draw("odd")]
    out, tangent = attention_jvp(*leaves, *draw("odd", 1), attn_mask=mask, backend=backend)
    assert (out[..., 3, :] == 0).all()
    assert (tangent[..., 3, :] == 0).all()
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][..., 3, :] == 0).all()
    assert out.isfinite().all()
    assert tangent.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_values_far_apart_neither_overflow_nor_lose_the_tangent(backend):
    q, k, v = draw("odd")
    q = 300 * q
    value, moved = torch.func.jvp(explicit, (q, k, v), draw("odd", 1))
    out, tangent = attention_jvp(q, k, v, *draw("odd", 1), backend=backend)
    torch.testing.assert_close(out, value, atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(tangent, moved, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_queries(backend):
    rng = torch.Generator().manual_seed(0)
    q, tq = (torch.randn(2, 6, 4, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    k, v, tk, tv = (torch.randn(2, 2, 5, 3, generator=rng, dtype=torch.float64) for _ in range(4))
    wide = [x.repeat_interleave(3, 1) for x in (k, v, tk, tv)]
    found = attention_jvp(q, k, v, tq, tk, tv, enable_gqa=True, backend=backend)
    expected = attention_jvp(q, *wide[:2], tq, *wide[2:], backend=backend)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_accumulates_in_float32(backend):
    primals, tangents = draw("odd", dtype=torch.bfloat16), draw("odd", 1, torch.bfloat16)
    out, tangent = attention_jvp(*primals, *tangents, backend=backend)
    exact = attention_jvp(*[x.double() for x in primals], *[x.double() for x in tangents], backend=backend)
    assert out.dtype == tangent.dtype == torch.bfloat16
    # one rounding to bfloat16 at the end: 2^-9 relative
    torch.testing.assert_close(out.double(), exact[0], atol=1e-4, rtol=2**-8)
    torch.testing.assert_close(tangent.double(), exact[1], atol=1e-4, rtol=2**-8)


@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_under_checkpointing(backend):
    leaves = [x.requires_grad_() for x in draw("square")]

    def block(q, k, v):
        return attention(q, k, v, backend=backend) ** 2

    plain = torch.autograd.grad(block(*leaves).sum(), leaves)
    saved = torch.autograd.grad(checkpoint(block, *leaves, use_reentrant=False).sum(), leaves)
    for ours, theirs in zip(saved, plain):
        assert torch.equal(ours, theirs)


def test_operator_gradient_agrees_with_differences():
    leaves = [x.requires_grad_() for x in draw("cross")]
    for backend in BACKENDS:
        torch.autograd.gradcheck(
            lambda q, k, v, b=backend: attention(q, k, v, backend=b), leaves, check_forward_ad=True
        )


def test_chunked_memory_is_linear_in_the_length(monkeypatch):
    """The widest tensor it creates has one block of keys, for any number of keys."""
    monkeypatch.setattr(chunked, "BLOCK", 16)
    widest = []
    original = chunked.scores

    def watched(q, k, options, first=0):
        found = original(q, k, options, first)
        widest.append(found.shape[-1])
        return found

    monkeypatch.setattr(chunked, "scores", watched)
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 100, 2, generator=rng).requires_grad_() for _ in range(3))
    attention_jvp(q, k, v, q.detach(), backend="chunked")[0].sum().backward()
    assert max(widest) == 16
    assert len(widest) == 2 * 7


def test_auto_streams_long_keys_only():
    short, long = (torch.zeros(1, 1, n, 1) for n in (LONG_KEYS - 1, LONG_KEYS))
    assert choose_backend("auto", short, short, short) == "reference"
    assert choose_backend("auto", short, long, long) == "chunked"


@pytest.mark.parametrize("backend", BACKENDS)
def test_key_lengths_are_a_mask(backend):
    lengths = torch.tensor([3, 8])
    mask = torch.arange(8) < lengths[:, None, None, None]
    found = attention_jvp(*draw("square"), *draw("square", 1), key_lengths=lengths, backend=backend)
    expected = attention_jvp(*draw("square"), *draw("square", 1), attn_mask=mask, backend=backend)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_a_loop(backend):
    """vmap over queries, with a separate mask for each of the two sequences of the inner batch and shared keys."""
    q, k, v = draw("square")
    many = torch.stack((q, 2 * q, -q))
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.3

    def call(x):
        return attention(x, k, v, attn_mask=mask, backend=backend)

    torch.testing.assert_close(torch.vmap(call)(many), torch.stack([call(x) for x in many]))
    moved = torch.func.jvp(lambda x: torch.vmap(call)(x), (many,), (many.cos(),))[1]
    expected = [torch.func.jvp(call, (x,), (x.cos(),))[1] for x in many]
    torch.testing.assert_close(moved, torch.stack(expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_heads_third_and_gradients_of_shared_heads(backend):
    rng = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 6, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 5, 2, 3, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out, _ = attention_jvp(q, k, v, enable_gqa=True, layout="bnhd", backend=backend)
    expected = scaled_dot_product_attention(*[x.transpose(1, 2) for x in (q, k, v)], enable_gqa=True)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    ours, theirs = (torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in (out, expected))
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo itself does
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_whole_it_gives_the_same_numbers(backend):
    primals, moved = draw("odd"), draw("odd", 1)

    def call(q, k, v):
        out, tangent = attention_jvp(q, k, v, *moved, is_causal=True, backend=backend)
        return out.sin(), tangent

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (compiled, call):
        leaves = [x.clone().requires_grad_() for x in primals]
        out, tangent = function(*leaves)
        gradients.append((out.detach(), tangent, *torch.autograd.grad(out.sum(), leaves)))
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(
            ours, theirs, atol=1e-14, rtol=1e-14
        )  # the same operations, perhaps in another order
