"""Weights predicted by a small network, so that rows share what is learned and unseen rows have a weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from amal_hf._types import Tensors
from amal_hf.mixing.base import Mixing, Rows

ABSTAINS = -1.0
"""What the loss of a silent source reads: no loss in nats is negative, so silence is not mistaken for agreement."""


class Amortised(Mixing):
    r"""λ = λ(φ): a network φ reads the rows and learns by Adam from the surrogate of docs/method.md (E4),

    $$S(\phi) = \frac1N \sum_{ik} \mathrm{sg}\Big(\frac{\partial V}{\partial\lambda_{ik}}\Big)\,\lambda_{ik}(\phi),
      \qquad \nabla_\phi S \propto \nabla_\phi V(\theta'(\lambda(\phi)))$$

    Linear in λ, so this is the chain rule and exact for the one-step lookahead. Gradients add up over the
    micro-batches of an optimizer step; φ moves in `commit`, so a step trains with the network of the step before.
    φ is float64 on the CPU: every process computes the same step, bit for bit, whatever the student runs on.

    With `hold_mean` it is λ / mean λ that counts, over the covered entries of an optimizer step:

    $$\nabla_\phi S - \frac{\sum g\lambda}{\sum\lambda}\, \nabla_\phi \frac1N \sum_{ik} \lambda_{ik}(\phi)$$

    Without, a student who has yet to learn asks for more of everything, and every weight ends at its bound.

    Args:
        make: builds the network; called with a random state of its own, so that the run's stays as it is.
        lr: Adam's learning rate.
        weight_decay: L2, as `torch.optim.Adam` applies it.
        hold_mean: learn what is trusted more than the rest; for use with `normalize="mean"`.
        seed: of the network's first parameters; the same in all processes.
    """

    def __init__(
        self, make: Callable[[], nn.Module], lr: float, weight_decay: float, hold_mean: bool, seed: int
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = make().double()
        self.hold_mean = hold_mean
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, weight_decay=weight_decay)
        for parameter in self.network.parameters():  # from the start, so that `load_state` has where to put it
            zeros = torch.zeros_like(parameter)
            moments = {"step": torch.zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
            self.optimizer.state[parameter] = moments
        self._forget()

    def _forget(self) -> None:
        nothing = [torch.zeros_like(p) for p in self.network.parameters()]
        self._pull, self._lift = nothing, nothing  # of this optimizer step: ∇ Σ gλ and ∇ Σ λ
        self._pulled = self._lifted = 0.0  # Σ gλ and Σ λ
        self._rows = 0

    @abstractmethod
    def predict(self, rows: Rows) -> Tensor:
        """λ(φ), `[N, K]`, with its graph; `rows` are float64 on the CPU."""

    def weights(self, rows: Rows) -> Tensor:
        with torch.no_grad():
            return self.predict(_on_cpu(rows)).to(rows.losses) * rows.mask

    def surrogate(self, rows: Rows, gradient: Tensor) -> Tensor:
        """Σ sg(∂V/∂λ) λ(φ) over the covered entries, a scalar; `gradient` is `[N, K]`."""
        rows = _on_cpu(rows)
        fixed = torch.where(rows.mask, gradient.detach().cpu().double(), 0.0)
        return (fixed * self.predict(rows)).sum()

    def update(self, rows: Rows, gradient: Tensor) -> None:
        pulled, pull = self._with_gradient(rows, gradient)
        lifted, lift = self._with_gradient(rows, torch.ones_like(gradient))
        self._pull = [a + b for a, b in zip(self._pull, pull, strict=True)]
        self._lift = [a + b for a, b in zip(self._lift, lift, strict=True)]
        self._pulled, self._lifted = self._pulled + pulled, self._lifted + lifted
        self._rows += len(gradient)

    def _with_gradient(self, rows: Rows, factor: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        with torch.enable_grad():
            value = self.surrogate(rows, factor)
            return value.item(), torch.autograd.grad(value, list(self.network.parameters()))

    def commit(self) -> None:
        if self._rows == 0:
            return  # nothing was seen: no decay, no momentum
        mean = self._pulled / self._lifted if self.hold_mean and self._lifted > 0 else 0.0
        for parameter, pull, lift in zip(self.network.parameters(), self._pull, self._lift, strict=True):
            parameter.grad = (pull - mean * lift) / self._rows
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._forget()

    def state(self) -> Tensors:
        held: Tensors = {}
        for name, parameter in self.network.named_parameters():
            moments = self.optimizer.state[parameter]
            held[f"network/{name}"] = parameter.detach()
            held |= {f"network/{name}/{moment}": tensor for moment, tensor in moments.items()}
        return held


class MetaWeightNet(Amortised):
    r"""λ_i = σ(MLP(ℓ_i)): K detached losses in, one hidden layer of 100, K weights in (0, 1) out.

    Which losses are believable is learned once for all rows. With one source this is the published 1-100-1 network.

    Args:
        num_sources: K.
        lr, weight_decay, hold_mean: as for `Amortised`.
        hidden: units of the hidden layer.
        seed: of its first parameters.

    Example:
        >>> net = MetaWeightNet(1, lr=0.05)
        >>> losses = torch.tensor([[0.1], [3.0]])  # what the student believes, and what it does not
        >>> rows = Rows(torch.arange(2), losses, losses > 0, torch.zeros(2, 1, 2), torch.zeros(2, 2))
        >>> for _ in range(100):
        ...     net.update(rows, torch.tensor([[-1.0], [1.0]]))  # the large loss is of a wrong label
        ...     net.commit()
        >>> (net.weights(rows) > 0.5).tolist()  # shape: [2, 1]
        [[True], [False]]

    References:
        Shu et al. (NeurIPS 2019), "Meta-Weight-Net: learning an explicit mapping for sample weighting".
    """

    def __init__(
        self,
        num_sources: int,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        hold_mean: bool = False,
        hidden: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(
            lambda: nn.Sequential(
                nn.Linear(num_sources, hidden), nn.ReLU(), nn.Linear(hidden, num_sources), nn.Sigmoid()
            ),
            lr, weight_decay, hold_mean, seed,
        )  # fmt: skip

    def predict(self, rows: Rows) -> Tensor:
        return self.network(torch.where(rows.mask, rows.losses, ABSTAINS))


class WeightNetwork(Amortised):
    r"""Weights from what each source asserts, what it costs and who agrees; for rows never seen as well.

    $$h_{ik} = \mathrm{relu}(A\,[x_{ik}; e_k; E^\top q_{ik}]), \qquad
      \lambda_{ik} = 2\,\lambda^0_k\,\sigma\big(B\,\mathrm{relu}(A'[h_{ik}; \bar h_i])\big)$$

    $x_{ik}$ holds log(1 + ℓ_ik), the share of the row's other asserting sources that assert the same, the share of
    sources that cover it, how far the clean rows and `log_posterior` would have the asserted classes, and whether a
    class is asserted at all;
    $e_k$ is the source's embedding, $E$ the classes', and $\bar h_i$ the mean over the covering sources. The last
    layer starts at zero: λ starts at `start`. One network serves all sources, so K may be large.

    An option for rows visited too seldom for a weight of their own; `Trust` is the default.

    Args:
        num_sources, num_classes: K and C.
        start: λ⁰, `[K]`; a weight stays in (0, 2 λ⁰).
        lr, weight_decay, hold_mean: as for `Amortised`.
        hidden, width: units of the layers, and of the embeddings.
        seed: of its first parameters.

    Example:
        >>> net = WeightNetwork(2, 3, torch.tensor([1.0, 0.5]))
        >>> targets = torch.eye(3)[torch.tensor([[0, 1]])]  # source 0 asserts class 0, source 1 asserts class 1
        >>> rows = Rows(torch.tensor([0]), torch.ones(1, 2), torch.ones(1, 2) > 0, targets, torch.zeros(1, 3))
        >>> net.weights(rows)  # shape: [1, 2]
        tensor([[1.0000, 0.5000]])

    References:
        docs/method.md (E4); Zaheer et al. (NeurIPS 2017), "Deep sets", for the mean over sources.
    """

    def __init__(
        self,
        num_sources: int,
        num_classes: int,
        start: Tensor,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        hold_mean: bool = True,
        hidden: int = 32,
        width: int = 8,
        seed: int = 0,
    ) -> None:
        self.start = start.detach().cpu().double()
        make = lambda: _SourceNetwork(num_sources, num_classes, hidden, width)  # noqa: E731
        super().__init__(make, lr, weight_decay, hold_mean, seed)

    def predict(self, rows: Rows) -> Tensor:
        return 2 * self.start * self.network(features(rows), rows.targets, rows.mask.double()).sigmoid()


def features(rows: Rows) -> Tensor:
    """What `WeightNetwork` reads of each source on each row: the six numbers of x, `[N, K, 6]`.

    Example:
        >>> targets = torch.eye(2)[torch.tensor([[0, 0, 1]])]
        >>> rows = Rows(torch.tensor([0]), torch.zeros(1, 3), torch.ones(1, 3) > 0, targets, torch.zeros(1, 2))
        >>> features(rows)[0, :, 1]  # shape: [3]; one of the two others agrees with each of the first two
        tensor([0.5000, 0.5000, 0.0000])
    """
    asserted = rows.targets * rows.mask[..., None]  # [N, K, C]
    asserts = (asserted.sum(-1) > 0).to(asserted)
    same = torch.einsum("nkc,nkc->nk", asserted, asserted.sum(1, keepdim=True) - asserted)
    agreement = same / (asserts.sum(-1, keepdim=True) - 1).clamp_min(1)
    coverage = rows.mask.to(asserted).mean(-1, keepdim=True).expand_as(agreement)
    wanted = torch.einsum("nkc,nc->nk", asserted, rows.class_gradient.to(asserted))
    probability = rows.log_posterior.to(asserted).expand_as(rows.class_gradient).softmax(-1)
    believed = torch.einsum("nkc,nc->nk", asserted, probability)
    return torch.stack([rows.losses.clamp_min(0).log1p(), agreement, coverage, wanted, believed, asserts], dim=-1)


class _SourceNetwork(nn.Module):
    """Features `[N, K, 6]`, targets `[N, K, C]` and mask `[N, K]` -> logit of every weight, `[N, K]`."""

    def __init__(self, num_sources: int, num_classes: int, hidden: int, width: int) -> None:
        super().__init__()
        self.source = nn.Parameter(torch.randn(num_sources, width) / width**0.5)
        self.classes = nn.Parameter(torch.randn(num_classes, width) / width**0.5)
        self.read = nn.Linear(6 + 2 * width, hidden)
        self.compare = nn.Linear(2 * hidden, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        source = self.source.expand(len(x), -1, -1)
        h = self.read(torch.cat([x, source, targets @ self.classes], dim=-1)).relu()
        mean = torch.einsum("nkh,nk->nh", h, mask) / mask.sum(-1).clamp_min(1)[:, None]
        both = torch.cat([h, mean[:, None].expand_as(h)], dim=-1)
        return self.out(self.compare(both).relu()).squeeze(-1)


def _on_cpu(rows: Rows) -> Rows:
    """The rows as the network reads them: float64 on the CPU."""
    return replace(
        rows,
        losses=rows.losses.detach().cpu().double(),
        mask=rows.mask.cpu(),
        targets=rows.targets.detach().cpu().double(),
        class_gradient=rows.class_gradient.detach().cpu().double(),
        log_posterior=rows.log_posterior.detach().cpu().double(),
    )
