"""UNDIAL against PyTorch."""

import pytest
import torch
import torch_peer
from torch.nn import functional as F
from torch_peer import FORGET, KEEP_WEIGHT, answers, keep_cross_entropy


@pytest.mark.slow
def test_undial_is_that_of_pytorch():
    beta = 3.0

    def expected(peer, vanilla):
        losses = []
        pairs = zip(answers(peer, FORGET), answers(vanilla, FORGET), strict=True)
        for (logits, tokens), (before, _) in pairs:
            lowered = before.detach() - beta * F.one_hot(tokens, before.shape[-1])
            losses.append(F.cross_entropy(logits, lowered.softmax(-1), reduction="none"))
        return torch.cat(losses).mean() + KEEP_WEIGHT * keep_cross_entropy()

    torch_peer.check("undial", expected, beta=beta)
