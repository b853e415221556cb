"""Build text_classifier.mar: ``python handlers/build/text_classifier.py [--model FOLDER]``.

FOLDER is what transformers' ``save_pretrained`` wrote for model and tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import torch
from archive import main

_WORDS = (
    "the a an this that it is was not very good great fine bad poor awful film book food service place i we they "
    "liked loved hated enjoyed and but with without never always again really quite slow fast cheap dear"
)


def tiny(folder: Path) -> None:
    """A BERT with 2 layers of 64 and a WordPiece tokenizer of a few words; starts in a second on a CPU."""
    _bert(folder, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)


def bert_base(folder: Path) -> None:
    """The architecture of BERT-base (12 layers of 768, 30,522 words) with random weights, to measure with."""
    _bert(folder, vocab_size=30_522)


def _bert(folder: Path, **size: int) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    words = _tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(**{"vocab_size": words, **size}, id2label={0: "NEGATIVE", 1: "POSITIVE"})
    BertForSequenceClassification(config).save_pretrained(folder)


def _tokenizer(folder: Path) -> int:
    """Write the tokenizer; how many words it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = dict.fromkeys([*special, *_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return len(vocabulary)


if __name__ == "__main__":
    main("text_classifier", {"tiny": tiny, "bert-base": bert_base})
