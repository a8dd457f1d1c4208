"""Texts and tokenizer."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from src.errors import ConfigError
from src.pretrained import texts as texts_module
from src.pretrained.texts import (
    GalaTokenizer,
    Prompts,
    fetch_tokenizer,
    is_delimiter,
    read_texts,
    sample_indices,
)

REFERENCE = json.loads((Path(__file__).parent / "data" / "tokenizer_reference.json").read_text())


def test_published_sampling():
    indices = sample_indices(10_000, 1000, 42)
    assert indices[:12] == [1824, 409, 4506, 4012, 3657, 2286, 1679, 8935, 1424, 9674, 6912, 520]
    assert sum(indices) == 5_062_683
    assert sample_indices(10_000, 10, 42) == indices[:10]


def test_pile_is_sampled(monkeypatch):
    monkeypatch.setattr(texts_module, "load_pile", lambda: [{"text": f"row {i}"} for i in range(10_000)])
    assert read_texts(None, 3, 42) == ["row 1824", "row 409", "row 4506"]
    assert len(read_texts(None, None, 42)) == 1000


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\nline more\n\n  two\n \n\nthree\n")
    assert read_texts(str(tmp_path / "a.txt"), None, 0) == ["one\nline more", "  two", "three"]
    (tmp_path / "b.txt").write_text("four\n\nfive")
    assert len(read_texts(str(tmp_path), None, 0)) == 2
    lines = [json.dumps({"text": f"{i}\u2028x"}, ensure_ascii=False) for i in range(9)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    drawn = read_texts(str(tmp_path / "c.jsonl"), 4, 7)
    assert drawn == [f"{i}\u2028x" for i in sample_indices(9, 4, 7)]


def test_only_newlines_end_lines(tmp_path):
    """A form feed, U+2028 or U+0085 is a character of the text; Windows' line ends and byte-order marks are none."""
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\x0c\u2028\u2028two\r\nmore\r\n\r\n\x0c\n\nthree\u0085\u0085".encode())
    assert read_texts(str(path), None, 0) == ["one\x0c\u2028\u2028two\nmore", "\x0c", "three\u0085\u0085"]
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\n')
    assert read_texts(str(tmp_path / "b.jsonl"), None, 0) == ["x", "y"]


def test_delimiters():
    assert [is_delimiter(piece) for piece in (".", " ,", "\n", "\u2581;", "a.", " ", "", "\n\n", "(")] == [
        *([True] * 4), *([False] * 3), True, True
    ]  # fmt: skip


def test_uniform_shares_by_hand():
    """Three tokens, the second a delimiter: rows 1, (1, 1)/2, (1, 1, 1)/3."""
    prompts = Prompts.from_lists([[5, 9, 7]], 4, 0, delimiters=[9, 5])
    found = prompts.uniform_shares()
    assert found["first"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert found["delimiter"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "content", "num", "sentence"),
    [
        ("a.txt", "one\n\ntwo", 3, "n_samples=3 is more than the 2 texts"),
        ("a.txt", " \n\n ", None, "has no texts"),
        ("a.jsonl", '{"text": "x"}\n{"text": " "}', None, "line 2 is empty"),
        ("a.jsonl", '{"text": "x"}\nnonsense', None, "line 2, is no JSON object"),
        ("a.jsonl", '{"txt": "x"}', None, "line 1, is no JSON object"),
        ("a.csv", "x", None, "must end in"),
        ("a.txt", b"\xff\xfe\x00", None, "UTF-8"),
        ("a.txt", "x", 0, "at least 1"),
    ],
)
def test_wrong_texts(tmp_path, name, content, num, sentence):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=sentence):
        read_texts(str(tmp_path / name), num, 0)


def test_missing_file():
    with pytest.raises(ConfigError, match="is not there"):
        read_texts("/no/such/file.txt", None, 0)


def test_more_than_the_pile():
    with pytest.raises(ConfigError, match="n_samples=10001 is more than the 10000"):
        read_texts(None, 10_001, 42)


def test_prompts():
    prompts = Prompts.from_lists([[5, 6, 7, 8], [9]], 3, pad=0)
    assert prompts.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert prompts.valid.tolist() == [[True] * 3, [True, False, False]]


@pytest.mark.skipif("GALA_TOKENIZER" not in os.environ, reason="GALA_TOKENIZER is the path of bpe_32k_c4.model")
def test_token_ids():
    """The ids of the real tokenizer. Its file is fetched with the checkpoint, and not part of this project."""
    path = Path(os.environ["GALA_TOKENIZER"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == texts_module.TOKENIZER_SHA256 == REFERENCE["sha256"]
    tokenizer = GalaTokenizer(path)
    for case in REFERENCE["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"]


def test_wrong_tokenizer(tmp_path):
    (tmp_path / "bpe_32k_c4.model").write_bytes(b"something else")
    with pytest.raises(ConfigError, match="SHA-256 .* delete it"):
        fetch_tokenizer("unused", own=False, cache_dir=tmp_path)


def test_tokenizer_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr(texts_module, "TOKENIZER_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="put that file at .*bpe_32k_c4.model"):
        fetch_tokenizer("unused", own=False, cache_dir=tmp_path)


@pytest.mark.parametrize("answers", [True, False])
def test_pile_without_network_is_not_tried_for_a_minute(monkeypatch, answers):
    """`datasets` is told that the hub is out of reach, for this call alone."""
    import datasets

    seen = []

    def load(name, split):
        seen.append(datasets.config.HF_HUB_OFFLINE)
        raise OSError("nothing cached")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(texts_module, "hub_answers", lambda name, kind: answers)
    with pytest.raises(ConfigError, match="nothing cached.*--texts FILE"):
        read_texts(None, 3, 42)
    assert seen == [not answers]
    assert not datasets.config.HF_HUB_OFFLINE
