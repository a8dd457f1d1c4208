"""Rows of a table of trigger runs, as a log has them."""

from typing import Any

from src.config import RunConfig


def trigger(
    kind: str, seed: int, bos: float, error: float = 0.01, loss: float = 1e-4, state="finished", **fields: Any
) -> dict:
    config = RunConfig(task="trigger", attention_type=kind, seed=seed, **fields)
    measured = {"eval/loss": loss, "eval/max_error": error, "0_0_abs_attn_bos": bos, "0_0_attn_entropy": 0.2}
    measured |= {"0_0_row_sum": bos, "0_0_value_drain": 0.1, "0_residual_peak": 0.5, "0_residual_max_median": 5.0}
    return config.to_dict() | {"state": state, "hash": config.hash, "seconds": 9.0} | measured
