"""The texts that are analysed, and how they become token ids."""

import hashlib
import json
import os
import random
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from src.errors import ConfigError, require
from src.pretrained.checkpoint import read_file
from src.pretrained.gala import BUCKET
from src.pretrained.hub import hub_answers

SYNTHETIC = ("random", "repeated")  # tokens, in the place of texts
PILE, PILE_SIZE, PILE_SAMPLES = "NeelNanda/pile-10k", 10_000, 1000
TOKENIZER = "bpe_32k_c4.model"
TOKENIZER_URL = f"{BUCKET}/tensorflow_datasets/tokenizers/sentencepiece"
TOKENIZER_SHA256 = "537b5c3158de836f597dc4856b0d01accc6828e099af565ea58cb7896ad33e07"


@dataclass(frozen=True)
class Prompts:
    """Token ids (P, T), padded on the right, and which of them are text, (P, T) bool.

    delimiter: which are delimiters, (P, T) bool (default: none); prefix: how many tokens were put before a text.
    """

    ids: Tensor
    valid: Tensor
    delimiter: Tensor = None
    prefix: int = 0

    def __post_init__(self):
        if self.delimiter is None:
            object.__setattr__(self, "delimiter", torch.zeros_like(self.valid))

    @classmethod
    def from_lists(
        cls, lists: Sequence[Sequence[int]], length: int, pad: int, delimiters: Collection[int] = (), prefix: int = 0
    ) -> "Prompts":
        """The first `length` ids of each list, padded with `pad` to `length`."""
        rows = [list(ids[:length]) for ids in lists]
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        valid = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
        return cls(ids, valid, torch.isin(ids, torch.tensor(sorted(delimiters), dtype=ids.dtype)) & valid, prefix)

    @property
    def sha256(self) -> str:
        parts = (self.ids, self.valid, self.delimiter, torch.tensor(self.prefix))
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()

    def uniform_shares(self) -> dict[str, float]:
        """What the first key, delimiters and other keys would get of attention that is uniform and causal."""
        position = torch.arange(1, self.ids.shape[1] + 1)
        later = self.delimiter.clone()
        later[:, 0] = False
        first, delimiter = (1 / position).expand(self.ids.shape)[self.valid], (later.cumsum(1) / position)[self.valid]
        shares = {"first": float(first.mean()), "delimiter": float(delimiter.mean())}
        return shares | {"other": 1 - sum(shares.values())}


def is_delimiter(piece: str) -> bool:
    """Whether a token's text is punctuation or a line's end, blanks aside."""
    text = piece.strip(" \u2581")
    return bool(text) and all(c in string.punctuation or c == "\n" for c in text)


def synthetic(kind: str, ids: Sequence[int], num: int, length: int, seed: int) -> list[list[int]]:
    """`num` texts of `length` ids drawn uniformly of `ids`: all at random, or one of them repeated."""
    draw = random.Random(seed)
    return [draw.choices(ids, k=length) if kind == "random" else [draw.choice(ids)] * length for _ in range(num)]


def sample_indices(size: int, num: int, seed: int) -> list[int]:
    """`num` of 0 … size - 1, as random.seed(seed) and random.sample draw them; fewer are the first of these."""
    return random.Random(seed).sample(range(size), num)


def read_texts(source: str | None, num: int | None, seed: int) -> list[str]:
    """`num` texts drawn from a file or folder, all of them in order if None; without `source`, of pile-10k.

    A .jsonl file has a "text" in each line; a .txt file has texts with blank lines between them; a folder
    has one text in each .txt file. Raises ConfigError where there are too few, or one is empty.
    """
    require(num is None or num > 0, f"n_samples={num} must be at least 1")
    if source is None:
        num = PILE_SAMPLES if num is None else num
        require(num <= PILE_SIZE, f"n_samples={num} is more than the {PILE_SIZE} texts of {PILE}")
        pile = load_pile()
        return [pile[i]["text"] for i in sample_indices(PILE_SIZE, num, seed)]
    texts = read_documents(Path(source).expanduser())
    require(len(texts) > 0, f"{source} has no texts")
    if num is None:
        return texts
    require(num <= len(texts), f"n_samples={num} is more than the {len(texts)} texts of {source}; leave it out for all")
    return [texts[i] for i in sample_indices(len(texts), num, seed)]


def load_pile():
    """The rows of pile-10k, from the cache of `datasets` or the network."""
    import datasets  # seconds to import, and of no use with --texts

    before = datasets.config.HF_HUB_OFFLINE
    try:
        datasets.config.HF_HUB_OFFLINE = not hub_answers(PILE, "dataset")
        return datasets.load_dataset(PILE, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"can't fetch the texts {PILE} ({one_line(error)}); give texts of your own with --texts FILE, or the "
            "dataset's rows as .jsonl, fetched where there is network"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def read_documents(path: Path) -> list[str]:
    require(path.exists(), f"--texts {path} is not there; give a .jsonl or .txt file, or a folder of .txt files")
    if path.is_dir():
        named = {str(file): read_utf8(file).strip() for file in sorted(path.glob("[!.]*.txt"))}
    elif path.suffix == ".jsonl":
        lines = read_utf8(path).split("\n")
        named = {f"{path}, line {i}": text_of(path, i, line) for i, line in enumerate(lines, 1) if line.strip()}
    else:
        require(path.suffix == ".txt", f"--texts {path} must end in .jsonl or .txt, or be a folder of .txt files")
        # lines end at newlines alone: a form feed or U+2028 is a character like others
        lines = [line.rstrip(" \t\r") for line in read_utf8(path).split("\n")]
        return [block.strip("\n") for block in "\n".join(lines).split("\n\n") if block.strip("\n")]
    for place, text in named.items():
        require(bool(text.strip()), f"the text of {place} is empty; remove it")
    return list(named.values())


def read_utf8(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # without the mark that some editors put first
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read {path} as UTF-8 text ({one_line(error)})") from error


def text_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    require(isinstance(text, str), f'{path}, line {number}, is no JSON object with a string "text"')
    return text


def one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.200}"


class GalaTokenizer:
    """SentencePiece ids of the gala models: newlines as the piece <n>, no BOS and no EOS."""

    def __init__(self, path: Path | str):
        import sentencepiece

        try:
            self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{path} is no SentencePiece model ({one_line(error)})") from error

    def encode(self, text: str) -> list[int]:
        return self.model.encode(text.replace("\n", "<n>"))

    def piece(self, i: int) -> str:
        """The text of a token."""
        return self.model.id_to_piece(i).replace("<n>", "\n")

    @property
    def ordinary(self) -> list[int]:
        """Tokens that are neither special nor single bytes."""
        model = self.model
        return [i for i in range(len(model)) if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))]


def fetch_tokenizer(checkpoint: str, own: bool, cache_dir: Path) -> GalaTokenizer:
    """The tokenizer of the 7B models, kept in `cache_dir` and checked against its SHA-256.

    With `own`, that of a checkpoint of other sizes: the file tokenizer.model beside its index. Raises
    ConfigError where it can't be had, is another one or damaged.
    """
    name, url = ("tokenizer.model", checkpoint) if own else (TOKENIZER, TOKENIZER_URL)
    folder = cache_dir / hashlib.sha256(url.encode()).hexdigest()[:16] if own else cache_dir
    path = folder / name
    if own or not path.exists():
        try:
            content = read_file(url, name)
        except ConfigError as error:
            raise ConfigError(f"can't fetch the tokenizer {url}/{name}; put that file at {path}") from error
        require(content is not None, f"there is no tokenizer {url}/{name}; put that file at {path}")
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{name}.{os.getpid()}.part")
        unfinished.write_bytes(content)
        unfinished.replace(path)
    if not own:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        require(
            found == TOKENIZER_SHA256,
            f"{path} has the SHA-256 {found}, not the tokenizer's {TOKENIZER_SHA256}; delete it to fetch it again",
        )
    return GalaTokenizer(path)
