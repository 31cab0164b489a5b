"""Byte-level BPE of nano: a few hundred pieces, every digit alone, LLaDA2's special tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from llada_sglang.nano import chat, tasks

# A digit; " x " of the tables; a lower-case word with the space before it; any other word; what is
# between words. Capitalised words stay apart from their space, so that a name is the same token in
# `name Ada` and in `"Ada"`.
PIECE = r"\d| x | ?[a-z_]+|[A-Z][A-Za-z]*|[^A-Za-z0-9_]+"


def _corpus(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    controls = Regex("|".join(map(_escape, (*chat.CONTROL_TOKENS, *chat.TOOL_TOKENS))))
    split = pre_tokenizers.Split(controls, behavior="removed")
    for index in range(count):
        family = tasks.FAMILIES[index % len(tasks.FAMILIES)]
        example = tasks.draw(rng, family, "train")
        text = chat.render_prompt(example.messages, example.tools) + example.answer
        for piece, _ in split.pre_tokenize_str(text):
            yield piece


def _escape(token: str) -> str:
    return token.replace("|", r"\|")


def train_tokenizer(*, seed: int = 0, vocab_size: int = 768, samples: int = 20000) -> Tokenizer:
    """Train the BPE on task text; special tokens follow the `vocab_size` trained pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(chat.CONTROL_TOKENS) - len(chat.TOOL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, samples), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in chat.CONTROL_TOKENS]
    )
    # Not special: the text of a tool call must survive skip_special_tokens.
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in chat.TOOL_TOKENS])
    return tokenizer


def add_edit_tokens(tokenizer: Tokenizer) -> None:
    """Give it DELETE and SPLIT (LLaDA2.2) behind the ids it has; nothing where it has them."""
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in chat.EDIT_TOKENS]
    )


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one token; raises ValueError if the tokenizer does not have it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, out: Path, *, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja for AutoTokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": chat.END_OF_TEXT,
        "pad_token": chat.END_OF_TEXT,
        "mask_token": chat.MASK,
        "bos_token": None,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": chat.CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(chat.CHAT_TEMPLATE)
