"""What removes sinks and massive activations, and what that costs: each change beside a control of equal size.

Every change runs on the same texts and predicts the same tokens as the model as it is, so that differences of the
loss are paired text by text.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from src.errors import require
from src.pretrained.encoder import Encoder
from src.pretrained.huggingface import Change, Measurement, examine, measure_all
from src.pretrained.observed import Observed
from src.pretrained.rates import SINK_THRESHOLD, sink_rate, text_means
from src.pretrained.results import load_arrays, save_arrays
from src.pretrained.statistics import (
    MASSIVE_MAGNITUDE,
    PROFILE_LENGTH,
    massive_entries,
    median_magnitudes,
    ratio_mean,
)
from src.pretrained.texts import Prompts

EARLY = 16  # the random key that is masked is among the first of this many, so that most queries miss it


@dataclass(frozen=True)
class Setting:
    """What an intervention may look at: the prompts, the model's own results on them, the encoder, a seed."""

    prompts: Prompts
    results: dict[str, np.ndarray]
    encoder: Encoder
    seed: int

    @property
    def massive(self) -> bool:
        """Whether any text has a massive activation."""
        return bool((self.results["massive_per_prompt"] > 0).any())

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Intervention:
    """label: in figures; make: the change and the prompts of a setting, None where it does not apply there."""

    label: str
    make: Callable[[Setting], tuple[Change, Prompts] | None]


def mask_first(setting: Setting) -> tuple[Change, Prompts]:
    return Change(masked=torch.zeros(len(setting.prompts.ids), dtype=torch.long)), setting.prompts


def mask_random(setting: Setting) -> tuple[Change, Prompts]:
    """A key other than the first, of each text another one, among its first 16."""
    lengths = setting.prompts.valid.sum(1).clamp(min=2, max=EARLY)
    draws = torch.rand(len(lengths), generator=setting.generator())
    return Change(masked=1 + (draws * (lengths - 1)).long()), setting.prompts


def set_massive(means: bool, control: bool) -> Callable[[Setting], tuple[Change, Prompts] | None]:
    """Every massive activation, after each layer, set to 0 or to its mean over texts (Sun et al., 2024).

    As a control, as many dimensions of the same tokens, drawn at random for each layer among those that are not
    massive on average, are set to 0 or to their means.
    """

    def make(setting: Setting) -> tuple[Change, Prompts] | None:
        if not setting.massive:
            return None
        averages = torch.from_numpy(np.nan_to_num(setting.results["massive_mean"]))  # (L, D)
        generator = setting.generator()
        orders = [torch.randperm(averages.shape[1], generator=generator) for _ in averages]
        orders = [order[row[order].abs() <= MASSIVE_MAGNITUDE] for order, row in zip(orders, averages, strict=True)]
        values = averages if means else torch.zeros_like(averages)

        def change(layer: int, hidden: Tensor, valid: Tensor) -> Tensor:
            magnitude = hidden.float().abs()
            entries = massive_entries(hidden, median_magnitudes(magnitude, valid), valid)
            if control:
                entries = as_many_others(entries, orders[layer].to(hidden.device))
            return torch.where(entries, values[layer].to(hidden), hidden)

        return Change(hidden=change), setting.prompts

    return make


def as_many_others(entries: Tensor, order: Tensor) -> Tensor:
    """As many entries as are True in each row of `entries` (B, T, D), but in the first dimensions of `order`."""
    chosen = torch.zeros_like(entries)
    chosen[..., order] = torch.arange(len(order), device=entries.device) < entries.sum(-1, keepdim=True)
    return chosen


def with_prefix(name: str) -> Callable[[Setting], tuple[Change, Prompts] | None]:
    """Another token before the texts: none, bos, or (random) an ordinary one, of each text another."""

    def make(setting: Setting) -> tuple[Change, Prompts] | None:
        prompts, tokenizer = setting.prompts, setting.encoder.tokenizer
        if name == "bos" and tokenizer.bos_token_id is None:
            return None
        size = {"none": 0}.get(name, 1)
        if name == "none" and prompts.prefix == 0:
            return None
        before = torch.full((len(prompts.ids), size), tokenizer.bos_token_id or 0)
        if name == "random":
            ordinary = torch.tensor(sorted(set(range(tokenizer.vocab_size)) - set(tokenizer.all_special_ids)))
            before = ordinary[torch.randint(len(ordinary), before.shape, generator=setting.generator())]
        changed = prefixed(prompts, before)
        same = changed.ids.shape == prompts.ids.shape and bool((changed.ids == prompts.ids).all())
        return None if same else (Change(), changed)

    return make


def prefixed(prompts: Prompts, before: Tensor) -> Prompts:
    """The texts with the tokens `before` (P, n) in the place of their prefix."""
    ids, valid, delimiter = (x[:, prompts.prefix :] for x in (prompts.ids, prompts.valid, prompts.delimiter))
    true = torch.ones_like(before, dtype=torch.bool)
    return Prompts(
        torch.cat([before, ids], 1),
        torch.cat([true, valid], 1),
        torch.cat([~true, delimiter], 1),
        before.shape[1],
    )


INTERVENTIONS = {
    "prefix_none": Intervention("no first token added", with_prefix("none")),
    "prefix_bos": Intervention("BOS put first", with_prefix("bos")),
    "prefix_random": Intervention("random token put first", with_prefix("random")),
    "mask_first": Intervention("first key masked", mask_first),
    "mask_random": Intervention("random key masked", mask_random),
    "massive_zero": Intervention("massive activations to 0", set_massive(means=False, control=False)),
    "random_zero": Intervention("random dimensions to 0", set_massive(means=False, control=True)),
    "massive_mean": Intervention("massive activations to their mean", set_massive(means=True, control=False)),
    "random_mean": Intervention("random dimensions to their mean", set_massive(means=True, control=True)),
}
KEPT = (
    "alpha_1",
    "alpha_1_texts",
    "profile",
    "largest",
    "massive_per_prompt",
    "next_token_loss",
    "next_token_loss_se",
    "seconds",
)


def intervene(
    model: torch.nn.Module,
    prompts: Prompts,
    encoder: Encoder,
    results: dict[str, np.ndarray],
    work: Path,
    batch_size: int,
    device: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """What each intervention that applies does, as arrays "{name}/{what}"; see `effects`.

    results: the model's own on these prompts. Each intervention is saved in the folder `work` when it is done.
    """
    require(
        "loss_sum" in results, "--interventions needs a decoder with its head, whose loss shows what a change costs"
    )
    observed, setting, found = Observed(model), Setting(prompts, results, encoder, seed), {}
    for name, intervention in INTERVENTIONS.items():
        made = intervention.make(setting)
        if made is None:
            continue
        change, changed = made
        finished = work / f"{name}.npz"
        if not finished.exists():
            anatomy = examine(observed, changed, device)
            measured = measure_all(
                observed, anatomy, changed, work / f"progress_{name}.npz", batch_size, device, change, name
            )
            save_arrays(finished, effects(measured, results))
        found |= {f"{name}/{what}": array for what, array in load_arrays(finished).items()}
    return found


def effects(measurement: Measurement, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is kept of a changed model, beside the model as it is.

    loss_effect(_se): change of the loss in nats a token, paired by text; first_share_effect(_se): change of a
    text's mean α₁ over heads; sink_rate: of the first key; sink_rate_anywhere: share of heads in which the mean α_k
    of any of the first keys exceeds ε; and the arrays `KEPT`.
    """
    own = measurement.results()
    kept = {name: own[name] for name in KEPT}
    tokens = own["loss_tokens"]
    kept["loss_effect"], kept["loss_effect_se"] = ratio_mean(own["loss_sum"] - results["loss_sum"], tokens)
    change = text_means(own["alpha_1_texts"]) - text_means(results["alpha_1_texts"])  # (P,), NaN in short texts
    known = (~np.isnan(change)).astype(float)
    kept["first_share_effect"], kept["first_share_effect_se"] = ratio_mean(np.nan_to_num(change), known)
    rate = sink_rate(own)
    kept["sink_rate"], kept["sink_rate_se"] = np.float64(rate.value), np.float64(rate.error)
    kept["sink_rate_anywhere"] = np.float64(sink_rate_anywhere(own["profile"]))
    return kept


def sink_rate_anywhere(profile: np.ndarray) -> float:
    """Share of heads in which a key among the first has a mean α_k (L, N, K) above ε; NaN where none is known."""
    known = profile[..., : PROFILE_LENGTH // 4].reshape(-1, PROFILE_LENGTH // 4)
    known = known[~np.isnan(known).all(1)]
    return float((np.nanmax(known, 1) > SINK_THRESHOLD).mean()) if len(known) else float("nan")
