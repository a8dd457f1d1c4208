"""All attention types by name: those of the package, and functions of one's own as FILE.py:NAME."""

import difflib
from dataclasses import replace

import torch
from torch import Tensor

from src.errors import ConfigError, require
from src.extensions import is_external, load, short_name
from src.model.attention import PAPER, AttentionType
from src.model.mitigations import MITIGATIONS

ATTENTION = PAPER | MITIGATIONS
_checked: set[int] = set()  # ids of the user's objects that have passed the check


def find_attention(name: str) -> AttentionType:
    """The attention type of this name; one of the user's own is checked on a small example first.

    Such a one is a function of queries (..., Q, D), keys (..., K, D) and mask ((Q, K) or None) to weights
    (..., Q, K), or an AttentionType. Queries may be those of the last Q of K places alone, where no others matter.
    Raises ConfigError for a name that is none, and for one that fails the check.
    """
    if name in ATTENTION:
        return ATTENTION[name]
    if not is_external(name):
        near = difflib.get_close_matches(name, ATTENTION, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(
            f"attention_type={name} is not allowed; choose one of {', '.join(ATTENTION)}, or FILE.py:NAME{hint}"
        )
    found = load(name)
    kind = found if isinstance(found, AttentionType) else AttentionType(label=short_name(name), formula="", whole=found)
    require(
        callable(kind.whole) or (callable(kind.kernel) and callable(kind.normalise)),
        f"attention_type={name} is no function of queries, keys and mask, and no AttentionType; define one of them",
    )
    if id(found) not in _checked:  # it lives as long as its module, which is kept
        check_example(name, kind)
        _checked.add(id(found))
    return replace(kind, label=short_name(name), group="own")


def describe(name: str) -> AttentionType:
    """What figures say of an attention type, without running a file of the user's: its label, group and colour."""
    return ATTENTION.get(name) or AttentionType(label=short_name(name), formula="")


def check_example(name: str, kind: AttentionType) -> None:
    """ConfigError unless the weights of a small example, with and without a mask, have the right shape, are finite,
    are zero where masked, are what they would be for the last query alone, and can be trained."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 5, 8, generator=generator) for _ in range(2))
    numbers = {number: torch.full((2, 3, 1, 1), float(start(5))) for number, start in kind.numbers.items()}

    def example(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        return kind.weights(q.clone(), k.clone(), mask, **numbers)  # of copies, which it may change in place

    for mask in (torch.ones(5, 5, dtype=torch.bool).tril(), None):
        try:
            weights = example(q, k, mask)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"attention_type={name} fails on a small example ({reason}); mend it") from error
        shape = tuple(getattr(weights, "shape", ()))
        require(
            shape == (2, 3, 5, 5),
            f"attention_type={name} gives shape {shape} for queries and keys (2, 3, 5, 8); it must be (2, 3, 5, 5)",
        )
        require(
            bool(torch.isfinite(weights).all()),
            f"attention_type={name} gives weights that are not finite on a small example; mend it",
        )
        require(
            mask is None or not weights.masked_select(~mask).any(),
            f"attention_type={name} puts weight on masked keys; multiply its weights by the mask, or mask its scores",
        )
        last = example(q[..., -1:, :], k, None if mask is None else mask[-1:])
        require(
            last.shape == (2, 3, 1, 5) and torch.allclose(last, weights[..., -1:, :], rtol=1e-3, atol=1e-5),
            f"attention_type={name} gives the last query other weights where it is the only one; a query may look at "
            "keys and its row of the mask alone, and the last query stands at the last key",
        )
        require(
            not weights.requires_grad,
            f"attention_type={name} holds a parameter of its own, which nothing trains; declare it in `numbers` of an "
            "AttentionType",
        )
    if kind.whole is None:
        scores, places = kind.kernel(q, k), torch.tensor([3, 0, 2])
        some = kind.kernel(q[..., places, :], k[..., places, :])
        require(
            torch.allclose(some, scores[..., places, :][..., places], rtol=1e-3, atol=1e-5),
            f"attention_type={name} has a kernel that depends on where queries and keys stand; give it as `whole`",
        )
    moved = not torch.equal(example(q, k, None), example(q + 1, 2 * k, None))
    trained = example(q.requires_grad_(), k.requires_grad_(), None).requires_grad
    require(
        trained or not moved,
        f"attention_type={name} lets no gradient through to queries and keys; compute its weights with torch alone",
    )
