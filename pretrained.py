"""Attention statistics of a pretrained language model.

uv run python pretrained.py --model softmax --n-samples 1000      # the 7B model with softmax attention
uv run python pretrained.py --model sigmoid --n-samples 1000      # its twin with sigmoid attention
uv run python pretrained.py --model hf:NAME-OR-PATH --texts FILE  # any Hugging Face model, on texts of yours
"""

import contextlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np

from src import cli
from src.errors import require
from src.pretrained import analysis, huggingface, loading
from src.pretrained.cache import open_cache
from src.pretrained.checkpoint import TransferError, open_checkpoint
from src.pretrained.encoder import Encoder
from src.pretrained.gala import checkpoint_url, config_of
from src.pretrained.interventions import INTERVENTIONS, intervene
from src.pretrained.loading import is_memory_error
from src.pretrained.rates import SINK_THRESHOLD, sink_rate, sink_rate_of_texts, summary
from src.pretrained.results import Analysis, Place, check_folder, load, load_all, trust, versions
from src.pretrained.statistics import (
    NORMS,
    QUANTITIES,
    SINK_LENGTH,
)
from src.pretrained.texts import PILE, SYNTHETIC, Prompts, fetch_tokenizer, is_delimiter, read_texts, synthetic
from src.training.loop import choose_device
from src.values import as_type

SUMMARY = "Attention statistics of a pretrained language model."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to analyse, on which texts, and how.

    Args:
        model: softmax or sigmoid, the 7B models; or a Hugging Face model, hf:NAME, hf:FOLDER or hf:FILE.gguf.
        n_samples: Texts, drawn at random (default: 1000 of pile-10k, or all of --texts in order).
        max_seq_len: Tokens of each text, from its start.
        batch_size: Prompts at a time; more need more memory, and change nothing else.
        seed: Of the draw of texts.
        output_dir: Folder for the results.
        texts: A .jsonl or .txt file or a folder of .txt files, instead of pile-10k; or random or repeated tokens.
        title: The model's name in tables and figures; two analyses of one model stand side by side under two.
        prefix: What is put before each text: none, bos or a token (default: what the tokenizer puts there).
        interventions: Whether to measure also what removes sinks and massive activations (true), for decoders.
        figures: Folder to draw the figures of all analyses of output_dir in.
        checkpoint: Where the 7B checkpoint is: a folder, gs://... or https://... (default: as published).
        cache_dir: Folder for the weights, one file a layer.
        dtype: Arithmetic; bfloat16 also halves disk and memory.
        device: auto is cuda if there is one.
        trust_remote_code: Whether code that comes with a Hugging Face model may run here (true).
    """

    model: str
    n_samples: int | None = None
    max_seq_len: int = 256
    batch_size: int = 4
    seed: int = 42
    output_dir: str = "logs/pretrained"
    texts: str | None = None
    title: str | None = None
    prefix: str | None = None
    interventions: bool = False
    figures: str | None = None
    trust_remote_code: bool = False
    checkpoint: str | None = None
    cache_dir: str = "~/.cache/softmax-polarization"
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"


TYPES = get_type_hints(Options)


def main(arguments: list[str]) -> int:
    return cli.run("pretrained.py", command, arguments, TransferError)


def command(arguments: list[str]) -> int:
    with explained_failures():
        options = parse(arguments)
        check_folder(Path(options.output_dir).expanduser())
        run_huggingface(options) if options.model.startswith("hf:") else run_gala(options)
        if options.figures:
            draw(options)
    return 0


@contextlib.contextmanager
def explained_failures():
    """Within, what memory and disks refuse is a TransferError of one sentence."""
    try:
        yield
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        raise TransferError(
            f"{place}{error.strerror or error}; what is measured is kept, and the same command goes on from there"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise TransferError(
            "memory is not enough; give a smaller --batch-size or --max-seq-len, or --dtype bfloat16"
        ) from error


def parse(arguments: list[str]) -> Options:
    """The options, with hyphens or underscores; ConfigError for what is none or has a wrong value."""
    given = cli.read_options("pretrained.py", SUMMARY, cli.options_of(Options), arguments)
    require("model" in given, "--model is needed: softmax, sigmoid or hf:NAME-OR-PATH")
    options = Options(**{name: as_type(name, value, TYPES[name]) for name, value in given.items()})
    for name in ("max_seq_len", "batch_size"):
        require(getattr(options, name) > 0, f"{name}={getattr(options, name)} must be at least 1")
    return options


def run_gala(options: Options) -> None:
    """Analyse one of the 7B models."""
    config = config_of(options.model)
    for name in ("prefix", "interventions", "trust_remote_code"):
        require(not getattr(options, name), f"--{name.replace('_', '-')} goes with Hugging Face models; leave it out")
    if options.checkpoint is None:
        check_length(options, config.max_sequence_length)
    device, cache_dir = choose_device(options.device), Path(options.cache_dir).expanduser()
    texts = None if options.texts in SYNTHETIC else read_texts(options.texts, options.n_samples, options.seed)
    checkpoint = open_checkpoint(options.checkpoint or checkpoint_url(options.model), options.model)
    config, own = checkpoint.config, checkpoint.config != config
    check_length(options, config.max_sequence_length)
    tokenizer = fetch_tokenizer(checkpoint.url, own, cache_dir)
    lists = (
        synthetic(options.texts, tokenizer.ordinary, num_synthetic(options), options.max_seq_len, options.seed)
        if texts is None
        else [tokenizer.encode(text) for text in texts]
    )
    delimiters = [i for i in set().union(*lists) if is_delimiter(tokenizer.piece(i))]
    prompts = Prompts.from_lists(lists, options.max_seq_len, config.pad_token_id, delimiters)
    require(int(prompts.ids.max()) < config.vocab_size, "the tokenizer has more pieces than the model's vocabulary")
    place = make_place(options, options.title or options.model, checkpoint.fingerprint, prompts)
    with place.alone():
        if place.is_finished():
            return repeat(place)
        cache = open_cache(checkpoint, cache_dir, options.dtype)
        arrays = analysis.analyse_gala(cache, prompts, place.work, options.batch_size, options.dtype, device)
        about = {"title": options.title or options.model, "source": checkpoint.url, "weights": cache.hash}
        return finish(place, options, prompts, arrays, device, about)


def run_huggingface(options: Options) -> None:
    """Analyse a Hugging Face model."""
    name = options.model.removeprefix("hf:")
    require(options.checkpoint is None, "--checkpoint goes with softmax and sigmoid; give --model hf:FOLDER instead")
    device = choose_device(options.device)
    is_synthetic = options.texts in SYNTHETIC
    texts = None if is_synthetic else read_texts(options.texts, options.n_samples, options.seed)
    loaded = loading.load_model(name, options.dtype, device, options.trust_remote_code)
    check_length(options, loaded.max_length)
    encoder = Encoder.of(loaded.tokenizer, options.prefix)
    prompts = (
        encoder.synthetic(options.texts, num_synthetic(options), options.max_seq_len, options.seed)
        if is_synthetic
        else encoder.encode(texts, options.max_seq_len)
    )
    about = {"title": options.title or loaded.title, "source": name, "weights": loaded.revision}
    about |= {"weights_stored_as": loaded.stored_as, "first_tokens": encoder.first_tokens}
    place = make_place(options, about["title"], loaded.revision, prompts)
    with place.alone():
        if place.is_finished():
            return repeat(place)
        work, batch_size = place.work, options.batch_size
        arrays = huggingface.analyse_model(loaded.model, prompts, work, batch_size, device)
        if options.interventions:
            arrays |= intervene(loaded.model, prompts, encoder, arrays, work, batch_size, device, options.seed)
        return finish(place, options, prompts, arrays, device, about)


def num_synthetic(options: Options) -> int:
    return 100 if options.n_samples is None else options.n_samples


def check_length(options: Options, limit: int | None) -> None:
    length = options.max_seq_len
    require(limit is None or length <= limit, f"max_seq_len={length} is more than the {limit} tokens of the model")
    longer = length + options.interventions  # by a token put before the texts
    require(
        limit is None or longer <= limit,
        f"max_seq_len={length} leaves no room for the token that --interventions puts before texts; give {limit - 1}"
        if limit
        else "",
    )


def make_place(options: Options, title: str, weights: str, prompts: Prompts) -> Place:
    """Where the results go: a name for everything that decides the numbers."""
    identity = {"weights": weights, "prompts": prompts.sha256, "dtype": options.dtype, "versions": versions()}
    identity |= {"interventions": options.interventions and options.seed}
    return Place.of(Path(options.output_dir).expanduser(), title, identity)


def repeat(place: Place) -> None:
    print("This analysis is there already, and is not repeated.")
    report(load(place.results[1]), place)


def finish(
    place: Place,
    options: Options,
    prompts: Prompts,
    arrays: dict[str, np.ndarray],
    device: str,
    about: dict[str, Any],
) -> None:
    """Save and print the results; `about`: title, source, weights, and what else is known of the model."""
    about |= {"texts": options.texts or PILE, "prompts_sha256": prompts.sha256}
    about |= {name: getattr(options, name) for name in ("seed", "max_seq_len", "batch_size", "dtype")}
    about |= {"n_samples": len(prompts.ids), "num_tokens": int(prompts.valid.sum())}
    without = np.flatnonzero(np.isnan(arrays["row_sum"]).all(1)).tolist()
    about |= {"layers_without_attention": without, "summary": summary(arrays)}
    if arrays["causal"]:
        about["uniform_shares"] = prompts.uniform_shares()
    for name, rate in {"sink_rate": sink_rate(arrays), "sink_rate_of_texts": sink_rate_of_texts(arrays)}.items():
        about |= {name: rate.value, f"{name}_se": rate.error}
    seconds = sum(float(array.sum()) for name, array in arrays.items() if name.split("/")[-1] == "seconds")
    about |= trust(seconds, device)
    report(place.save(arrays, finite(about)), place)


def draw(options: Options) -> None:
    """Save the figures of all analyses of the output folder, and say where."""
    from src.pretrained.figures import draw_all  # seconds to import, and of no use without --figures

    for path in draw_all(load_all(Path(options.output_dir).expanduser()), Path(options.figures).expanduser()):
        print(path)


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
    for name in QUANTITIES + NORMS:
        row = about["summary"][name].values()
        print(f"{name:24}" + "".join("         -" if value is None else f"{value:10.4f}" for value in row))
    if about["layers_without_attention"]:
        print(f"layers without attention (from 0): {about['layers_without_attention']}")
    if about["sink_rate"] is None:
        print(f"sink heads: unknown, no text has the {SINK_LENGTH} tokens that alpha_1 is over")
    else:
        rates = [percent(about, name) for name in ("sink_rate", "sink_rate_of_texts")]
        print(f"sink heads (mean alpha_1 > {SINK_THRESHOLD}): {rates[0]}; sinks over texts and heads: {rates[1]}")
    if "next_token_loss" in found.arrays:
        print(f"next-token loss: {with_error(found.arrays, 'next_token_loss')} nats")
    for name, intervention in INTERVENTIONS.items():
        if f"{name}/loss_effect" in found.arrays:
            loss, share = (
                with_error(found.arrays, f"{name}/{what}", "+.4f") for what in ("loss_effect", "first_share_effect")
            )
            print(f"{intervention.label:34} loss {loss}, mean alpha_1 {share}")
    for path in place.results:
        print(path)


def percent(about: dict[str, Any], name: str) -> str:
    error = about[f"{name}_se"]
    return f"{about[name]:.1%}" + ("" if error is None else f" ± {error:.1%}")


def with_error(arrays: dict[str, np.ndarray], name: str, form: str = ".4f") -> str:
    """A number and its standard error over texts."""
    return f"{float(arrays[name]):{form}} ± {float(arrays[f'{name}_se']):.4f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
