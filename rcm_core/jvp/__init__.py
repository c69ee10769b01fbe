"""Tangents of any torch module: forward-mode AD with our attention kernel, and finite differences as fallbacks."""

from rcm_core.jvp.attention import flash_jvp
from rcm_core.jvp.float64 import Exactly
from rcm_core.jvp.forward import jvp
from rcm_core.jvp.joint import Dual, joint_jvp
from rcm_core.jvp.tangent import TangentKind, consistency_jvp

__all__ = ["Dual", "Exactly", "TangentKind", "consistency_jvp", "flash_jvp", "joint_jvp", "jvp"]
