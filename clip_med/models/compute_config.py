"""How the towers are computed: what changes speed and memory. Imports no torch."""

from __future__ import annotations

from typing import Literal

from clip_med.config import Fraction, PositiveFloat, PositiveInt, config


@config
class ComputeConfig:
    """Speed and memory of the towers in training; all but `patch_dropout` leave features and gradients as they are.

    What does not fit the model is refused by name before the first step.
    """

    pack_text: bool = False
    """Leave the padding between texts out of the text tower: rows of a batch become one row of real tokens. For
    open_clip's text transformers and BERT."""
    text_multiple: PositiveInt = 1
    """Trim texts to a multiple of this many positions (at most the context): fewer lengths, fewer compiled graphs."""
    pooled_last_block: bool = False
    """Compute the last image block for the pooled class token only; vision transformers that pool it."""
    patch_dropout: Fraction = 0.0
    """Part of the image patches that each training step leaves out (Li et al., arXiv 2212.00794)."""
    activation_checkpointing: Literal["none", "image", "text", "both"] = "none"
    """Keep only the inputs of blocks and compute the rest again in the backward pass: less memory, 1/3 more work."""
    compile: bool = False
    """torch.compile, each tower for itself; the first step takes minutes."""
    compile_backend: str = "inductor"
    """One of `torch.compiler.list_backends()`, eager or aot_eager."""
    peak_tflops: PositiveFloat | None = None
    """Peak of one device in 10^12 operations per second, for the utilisation (MFU) in the log; None: looked up."""

    def __post_init__(self) -> None:
        """Refuse settings that undo each other."""
        if self.pack_text and self.text_multiple > 1:
            raise ValueError(
                f"pack_text leaves out what text_multiple would pad; text_multiple must be 1, got {self.text_multiple}"
            )
        if self.pack_text and self.compile:
            raise ValueError(
                "pack_text: every batch has another number of tokens, and compile would build a graph for each; "
                "take text_multiple: 16 with compile"
            )
        if self.patch_dropout == 1.0:
            raise ValueError("patch_dropout must lie below 1: no patch would be left")


__all__ = ["ComputeConfig"]
