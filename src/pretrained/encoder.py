"""Texts to tokens with a Hugging Face tokenizer, and what stands before and after each text."""

from dataclasses import dataclass
from typing import Any

from src.errors import require
from src.pretrained.texts import Prompts, is_delimiter, synthetic


@dataclass(frozen=True)
class Encoder:
    """Texts to prompts: what is put before each text, `before`, and after it, `after`, are token ids."""

    tokenizer: Any
    before: list[int]
    after: list[int]

    @classmethod
    def of(cls, tokenizer, prefix: str | None = None) -> "Encoder":
        """With the special tokens that the tokenizer adds by itself; or, with `prefix`, before a text none, the
        tokenizer's bos, or the token of that text. ConfigError where that is no one token."""
        plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
        start = starts[0] if starts else 0
        after = whole[start + len(plain) :] if starts else []
        return cls(tokenizer, whole[:start] if prefix is None else prefix_ids(tokenizer, prefix), after)

    @property
    def first_tokens(self) -> list[str]:
        """What is put before each text, in words."""
        return [self.tokenizer.decode([i]) for i in self.before]

    def encode(self, texts: list[str], length: int) -> Prompts:
        """The first tokens of each text, `length` in all with those before and after it."""
        return self.prompts([self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts], length)

    def synthetic(self, kind: str, num: int, length: int, seed: int) -> Prompts:
        """Random or repeated tokens of the tokenizer's, its special ones left out."""
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in range(self.tokenizer.vocab_size) if i not in special]
        return self.prompts(synthetic(kind, ids, num, length, seed), length)

    def prompts(self, lists: list[list[int]], length: int) -> Prompts:
        room = length - len(self.before) - len(self.after)
        require(room > 0, f"max_seq_len={length} leaves no room between the special tokens; give a larger one")
        empty = [i for i, ids in enumerate(lists) if not ids]
        require(not empty, f"text {empty[:1]} (from 0) has no token; remove it")
        lists = [self.before + ids[:room] + self.after for ids in lists]
        used = set().union(*lists) - set(self.tokenizer.all_special_ids)
        delimiters = [i for i in used if is_delimiter(self.tokenizer.decode([i]))]
        pad = self.tokenizer.pad_token_id
        return Prompts.from_lists(lists, length, 0 if pad is None else pad, delimiters, len(self.before))


def prefix_ids(tokenizer, prefix: str) -> list[int]:
    if prefix == "none":
        return []
    if prefix == "bos":
        require(
            tokenizer.bos_token_id is not None, "prefix=bos, but the tokenizer has no BOS; give a token or none instead"
        )
        return [tokenizer.bos_token_id]
    ids = [tokenizer.get_vocab().get(prefix)]
    if ids == [None]:
        ids = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    require(
        len(ids) == 1 and ids[0] != tokenizer.unk_token_id or prefix == tokenizer.unk_token,
        f"prefix={prefix} is {len(ids)} tokens of this model, not one; give one token, bos or none",
    )
    return ids
