"""The whole idea in one file: two sources, one of them wrong, and the derivative that tells.

    python examples/00_lookahead_by_hand.py        # a second; expect "source 1 is to be trusted"

A linear classifier on four rows. Source 0 flips the classes, source 1 is right. One virtual step, one look at two
clean rows, and the meta-gradient ∂V/∂λ, shape [N, K] = [4, 2], says which one lowers the clean loss.
"""

import torch
from torch.nn import functional as F

from amal_hf.metagrad import DoubleBackward, FiniteDifference, ForwardMode, MetaProblem

x = torch.tensor([[2.0, 0.0], [1.5, 0.5], [0.0, 2.0], [0.5, 1.5]], dtype=torch.float64)  # [N, H]
truth = torch.tensor([0, 0, 1, 1])
says = torch.stack([1 - truth, truth], 1)  # [N, K]: source 0 is always wrong
clean_x, clean_y = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64), torch.tensor([0, 1])


def losses(params):
    """Unreduced losses, [N, K]."""
    log_p = F.log_softmax(x @ params["w"], -1)
    return -log_p.gather(1, says)


problem = MetaProblem(
    params={"w": torch.zeros(2, 2, dtype=torch.float64)},
    weights=torch.full((4, 2), 0.5, dtype=torch.float64),  # λ
    losses=losses,
    val_loss=lambda params: F.cross_entropy(clean_x @ params["w"], clean_y),
    lr=0.1,
)

# 1. by hand: θ′ = θ − η ∇L, v = η ∇V(θ′), ∂V/∂λ_ik = −⟨∇ℓ_ik, v⟩ / N
leaf = {"w": problem.params["w"].clone().requires_grad_()}
(gradient,) = torch.autograd.grad((problem.weights * losses(leaf)).sum() / 4, leaf["w"])
moved = (leaf["w"] - 0.1 * gradient).detach().requires_grad_()
(v,) = torch.autograd.grad(problem.val_loss({"w": moved}), moved)
by_hand = torch.stack(
    [
        torch.stack([-(torch.autograd.grad(losses(leaf)[i, k], leaf["w"])[0] * 0.1 * v).sum() / 4 for k in range(2)])
        for i in range(4)
    ]
)

# 2. by the library: three estimators of the same [4, 2]
for estimator in (ForwardMode(), FiniteDifference(radius=1e-4), DoubleBackward()):
    error = (estimator(problem) - by_hand).abs().max().item()
    print(f"{type(estimator).__name__:18s} differs from the hand-made one by {error:.1e}")
    assert error < 1e-9

print("∂V/∂λ =", by_hand)
print("source", by_hand.sum(0).argmin().item(), "is to be trusted: more weight on it lowers the clean loss")
