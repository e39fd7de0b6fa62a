"""WGA and SatImp against PyTorch."""

import pytest
import torch
import torch_peer
from torch_peer import FORGET, KEEP_WEIGHT, answers, keep_cross_entropy, log_p


@pytest.mark.slow
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_wga_is_that_of_pytorch(beta):
    def expected(peer, _):
        log_p_A = torch.cat(log_p(answers(peer, FORGET)))
        ascent = (log_p_A.detach().exp() ** beta * log_p_A).mean()
        return ascent + KEEP_WEIGHT * keep_cross_entropy()

    torch_peer.check("wga", expected, beta=beta)


@pytest.mark.slow
def test_satimp_is_that_of_pytorch():
    beta, importance_beta = 0.5, 2.0

    def expected(peer, _):
        log_p_A = torch.cat(log_p(answers(peer, FORGET)))
        p_A = log_p_A.detach().exp()
        ascent = (p_A**beta * (1 - p_A) ** importance_beta * log_p_A).mean()
        return 0.9 * ascent + KEEP_WEIGHT * keep_cross_entropy()

    torch_peer.check(
        "satimp", expected, beta=beta, importance_beta=importance_beta, forget_weight=0.9
    )
