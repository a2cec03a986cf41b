"""The policy's network under a scalar head in place of the vocabulary's: reward models (one score a text), value models (one a token)."""

from __future__ import annotations

import copy
from typing import Any

import torch


def with_scalar_head(policy: Any, kind: Any, **settings: Any) -> Any:
    """A transformers model with one label and a head of zeros; the policy's own weights are copied, not shared.

    Args:
        kind: AutoModelForSequenceClassification or AutoModelForTokenClassification.
        settings: of its configuration.
    """
    config = copy.deepcopy(policy.config)
    config.update({"num_labels": 1, **settings})
    model = kind.from_config(config)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    with torch.no_grad():
        for weight in model.score.parameters():
            weight.zero_()
    return model.eval()  # no dropout: what is trained is what scores
