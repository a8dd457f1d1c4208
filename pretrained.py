"""Attention statistics of a pretrained language model.

uv run python pretrained.py --model softmax --n-samples 1000      # the 7B model with softmax attention
uv run python pretrained.py --model sigmoid --n-samples 1000      # its twin with sigmoid attention
uv run python pretrained.py --model hf:NAME-OR-PATH --texts FILE  # any Hugging Face model, on texts of yours
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np

from src import cli
from src.errors import ConfigError, require
from src.pretrained import analysis, huggingface
from src.pretrained.analysis import Analysis, Place
from src.pretrained.cache import open_cache
from src.pretrained.checkpoint import TransferError, open_checkpoint
from src.pretrained.gala import checkpoint_url, config_of
from src.pretrained.statistics import QUANTITIES, SINK_LENGTH, SINK_THRESHOLD, sink_rate, summary
from src.pretrained.texts import PILE, Prompts, fetch_tokenizer, read_texts
from src.training.loop import choose_device
from src.values import as_type

SUMMARY = "Attention statistics of a pretrained language model."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to analyse, on which texts, and how.

    Args:
        model: softmax or sigmoid, the 7B models; or hf:NAME-OR-PATH, a Hugging Face model.
        n_samples: Texts, drawn at random (default: 1000 of pile-10k, or all of --texts in order).
        max_seq_len: Tokens of each text, from its start.
        batch_size: Prompts at a time; more need more memory, and change nothing else.
        seed: Of the draw of texts.
        output_dir: Folder for the results.
        texts: A .jsonl or .txt file or a folder of .txt files, instead of pile-10k.
        checkpoint: Where the 7B checkpoint is: a folder, gs://... or https://... (default: as published).
        cache_dir: Folder for the weights, one file a layer.
        dtype: Arithmetic; bfloat16 also halves disk and memory.
        device: auto is cuda if there is one.
    """

    model: str
    n_samples: int | None = None
    max_seq_len: int = 256
    batch_size: int = 4
    seed: int = 42
    output_dir: str = "logs/pretrained"
    texts: str | None = None
    checkpoint: str | None = None
    cache_dir: str = "~/.cache/softmax-polarization"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


TYPES = get_type_hints(Options)


def main(arguments: list[str]) -> int:
    return cli.run("pretrained.py", command, arguments, TransferError)


def command(arguments: list[str]) -> int:
    options = parse(arguments)
    return run_huggingface(options) if options.model.startswith("hf:") else run_gala(options)


def parse(arguments: list[str]) -> Options:
    """The options, with hyphens or underscores; ConfigError for what is none or has a wrong value."""
    given = cli.read_options("pretrained.py", SUMMARY, cli.options_of(Options), arguments)
    require("model" in given, "--model is needed: softmax, sigmoid or hf:NAME-OR-PATH")
    options = Options(**{name: as_type(name, value, TYPES[name]) for name, value in given.items()})
    for name in ("max_seq_len", "batch_size"):
        require(getattr(options, name) > 0, f"{name}={getattr(options, name)} must be at least 1")
    return options


def run_gala(options: Options) -> int:
    """Analyse one of the 7B models; the exit status."""
    config = config_of(options.model)
    if options.checkpoint is None:
        check_length(options, config.max_sequence_length)
    device, cache_dir = choose_device(options.device), Path(options.cache_dir).expanduser()
    texts = read_texts(options.texts, options.n_samples, options.seed)
    checkpoint = open_checkpoint(options.checkpoint or checkpoint_url(options.model), options.model)
    config, own = checkpoint.config, checkpoint.config != config
    check_length(options, config.max_sequence_length)
    tokenizer = fetch_tokenizer(checkpoint.url, own, cache_dir)
    prompts = Prompts.from_lists([tokenizer.encode(text) for text in texts], options.max_seq_len, config.pad_token_id)
    require(int(prompts.ids.max()) < config.vocab_size, "the tokenizer has more pieces than the model's vocabulary")
    place = make_place(options, options.model, checkpoint.fingerprint, prompts)
    if place.is_finished():
        return repeat(place)
    cache = open_cache(checkpoint, cache_dir, options.dtype)
    arrays = analysis.analyse_gala(cache, prompts, place.work, options.batch_size, options.dtype, device)
    return finish(place, options, prompts, arrays, device, checkpoint.url, cache.hash)


def run_huggingface(options: Options) -> int:
    """Analyse a Hugging Face model; the exit status."""
    name = options.model.removeprefix("hf:")
    require(options.checkpoint is None, "--checkpoint goes with softmax and sigmoid; give --model hf:FOLDER instead")
    device = choose_device(options.device)
    texts = read_texts(options.texts, options.n_samples, options.seed)
    loaded = huggingface.load_model(name, options.dtype, device)
    check_length(options, loaded.max_length)
    prompts = huggingface.encode(loaded.tokenizer, texts, options.max_seq_len)
    title = "/".join(Path(name).parts[-2:])  # of a folder as of the hub
    place = make_place(options, title, loaded.revision, prompts)
    if place.is_finished():
        return repeat(place)
    arrays = huggingface.analyse_model(loaded.model, prompts, place.work, options.batch_size, device)
    return finish(place, options, prompts, arrays, device, name, loaded.revision)


def check_length(options: Options, limit: int | None) -> None:
    length = options.max_seq_len
    require(limit is None or length <= limit, f"max_seq_len={length} is more than the {limit} tokens of the model")


def make_place(options: Options, title: str, weights: str, prompts: Prompts) -> Place:
    """Where the results go: a name for everything that decides the numbers."""
    identity = {"weights": weights, "prompts": prompts.sha256, "dtype": options.dtype}
    folder = Path(options.output_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={folder} can't be made ({error.strerror}); choose another") from error
    return Place.of(folder, title, identity)


def repeat(place: Place) -> int:
    print("This analysis is there already, and is not repeated.")
    report(analysis.load(place.results[1]), place)
    return 0


def finish(
    place: Place,
    options: Options,
    prompts: Prompts,
    arrays: dict[str, np.ndarray],
    device: str,
    source: str,
    weights: str,
) -> int:
    """Save and print the results; the exit status."""
    about = {"title": place.stem.rsplit("-", 1)[0], "source": source, "weights": weights}
    about |= {"texts": options.texts or PILE, "prompts_sha256": prompts.sha256}
    about |= {name: getattr(options, name) for name in ("seed", "max_seq_len", "batch_size", "dtype")}
    about |= {"n_samples": len(prompts.ids), "num_tokens": int(prompts.valid.sum())}
    about |= {"summary": summary(arrays), "sink_rate": sink_rate(arrays["alpha_1"])}
    about |= analysis.trust(float(arrays["seconds"].sum()), device)
    report(place.save(arrays, finite(about)), place)
    return 0


def finite(value: Any) -> Any:
    """With None, which JSON has, for NaN, which it hasn't."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def report(found: Analysis, place: Place) -> None:
    """Print the table over heads, and where the files are."""
    about = found.about
    layers, heads = found.arrays["row_sum"].shape
    print(
        f"{about['title']}: {layers} layers x {heads} heads, {about['n_samples']} texts, {about['num_tokens']} tokens"
    )
    print(f"{'over heads':24}{'mean':>10}{'25%':>10}{'50%':>10}{'75%':>10}")
    for name in QUANTITIES:
        row = about["summary"][name].values()
        print(f"{name:24}" + "".join("         -" if value is None else f"{value:10.4f}" for value in row))
    if about["sink_rate"] is None:
        print(f"sink heads: unknown, no text has the {SINK_LENGTH} tokens that alpha_1 is over")
    else:
        print(f"sink heads (alpha_1 > {SINK_THRESHOLD}): {about['sink_rate']:.1%}")
    if "next_token_loss" in found.arrays:
        print(f"next-token loss: {float(found.arrays['next_token_loss']):.4f} nats")
    for path in place.results:
        print(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
