"""Inputs that the attention kernels refuse, and the message."""

import pytest
import torch
from attention_cases import draw
from rcm_kernels import attention_jvp


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("triton", "not available: its kernels take float32, float16 and bfloat16, not float64; use 'auto'"),
        ("flash", "unknown backend 'flash'"),
    ],
)
def test_a_backend_that_cannot_be_had_is_an_error_that_says_why(backend, message):
    with pytest.raises(ValueError, match=message):
        attention_jvp(*draw("one"), backend=backend)


def test_shapes_that_do_not_fit():
    q, k, v = draw("odd")
    with pytest.raises(ValueError, match="do not fit"):
        attention_jvp(q, k[..., :4], v)
    with pytest.raises(ValueError, match="tangent of q"):
        attention_jvp(q, k, v, k)
    with pytest.raises(ValueError, match="cannot share"):
        attention_jvp(q, k.repeat(1, 2, 1, 1)[:, :3], v.repeat(1, 2, 1, 1)[:, :3], enable_gqa=True)
    with pytest.raises(ValueError, match="four dimensions each, none empty"):
        attention_jvp(q, k[:, :, :0], v[:, :, :0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.float32}, "expected one dtype and one device"),
        ({"tq": torch.float32}, r"tangent of q is float32 \[.*\] on cpu, expected float64"),
        ({"q": torch.int64, "k": torch.int64, "v": torch.int64}, "expected a floating dtype"),
    ],
)
def test_dtypes_that_do_not_fit(change, message):
    given = dict(zip(("q", "k", "v", "tq"), (*draw("odd"), draw("odd", 1)[0])))
    given |= {name: given[name].to(dtype) for name, dtype in change.items()}
    if "tq" not in change:
        given.pop("tq")
    with pytest.raises(ValueError, match=message):
        attention_jvp(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": torch.ones(7, 12)}, r"shape \[7, 12\], which does not broadcast to \[1, 2, 7, 13\]"),
        ({"attn_mask": torch.ones(7, 13, dtype=torch.int32)}, "a boolean .* or a floating mask"),
        ({"attn_mask": torch.ones(7, 13, requires_grad=True)}, "masks must be constant; detach it"),
        (
            {"key_lengths": torch.tensor([3, 4])},
            r"key_lengths is int64 \[2\] on cpu, expected 1 integers on cpu",
        ),
        ({"layout": "nbhd"}, "unknown layout 'nbhd'; use 'bhnd' or 'bnhd'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        attention_jvp(*draw("odd"), **options)
