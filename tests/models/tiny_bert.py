"""A BERT of sixteen words: folders of a Hugging Face text tower that need no download."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] left effusion a small nodule in the upper lobe of right lung !"
WORDS = VOCABULARY.split()


def write_bert(folder: Path, *, positions: int = 256, weights: bool = False, pooling_layer: bool = True) -> Path:
    """Write tokenizer and configuration (width 32) and, if asked, random weights with or without BERT's pooler."""
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
    )
    if weights:
        BertModel(config, add_pooling_layer=pooling_layer).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    return folder
