"""A module as a pure function of its parameters: same noise at every call, no trace left behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from amal_hf._types import Outputs, Tensors

KEEP_OUT = ("loss", "past_key_values", "attentions", "cross_attentions")


class RNGState:
    """The random state of now, replayed at will: two forwards then share their dropout masks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.state = self._read()

    def _read(self) -> tuple[Tensor, Tensor | None]:
        on_gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return torch.get_rng_state(), on_gpu

    def _write(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside: the captured state. Afterwards: whatever was there before, bit for bit."""
        before = self._read()
        self._write(self.state)
        try:
            yield
        finally:
            self._write(before)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Train or eval mode inside; afterwards every submodule's own flag is back."""
    flags = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Without autocast inside, accelerate's around `forward` included; afterwards that one is back.

    Differences of half-precision outputs are mostly rounding.
    """
    wrapped = vars(model).get("forward")
    if wrapped is not None and hasattr(model, "_original_forward"):  # what accelerate's prepare keeps
        vars(model)["forward"] = model._original_forward
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped


def trainable(model: nn.Module) -> Tensors:
    """Parameters that the optimizer moves, by name; tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def whole(param: Tensor) -> Tensor:
    """A parameter of which FSDP2 leaves each process a part, put together (all processes must ask); others as they are.

    Example:
        >>> whole(torch.ones(2))
        tensor([1., 1.])
    """
    return param.full_tensor() if isinstance(param, DTensor) else param


def model_outputs(raw: Any) -> Outputs:
    """The differentiable part of what a Hugging Face model (or any module) returned, with its logits `[N, C]`.

    By name where there are names; of a tuple the tensor `[N, C]`: a loss has fewer dimensions, states have more.

    Raises:
        ValueError: there is no such tensor, or more than one without a name.

    Example:
        >>> model_outputs((torch.tensor(0.7), torch.zeros(2, 3))).logits.shape  # (loss, logits)
        torch.Size([2, 3])
    """
    if isinstance(raw, tuple) and hasattr(raw, "_asdict"):
        raw = raw._asdict()
    elif not isinstance(raw, Tensor | Mapping | tuple | list) and hasattr(raw, "logits"):
        raw = vars(raw)
    if isinstance(raw, Mapping):
        logits = raw.get("logits")
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            raise ValueError(_no_logits({name: value for name, value in raw.items() if value is not None}))
        return Outputs({k: v for k, v in raw.items() if k not in KEEP_OUT and _of_tensors(v)})
    several = [raw] if isinstance(raw, Tensor) else list(raw) if isinstance(raw, tuple | list) else []
    found = [t for t in several if isinstance(t, Tensor) and t.dim() == 2 and t.is_floating_point()]
    if len(found) != 1:
        raise ValueError(_no_logits(dict(enumerate(several)) if several else raw))
    return Outputs(logits=found[0])


def _no_logits(returned: Any) -> str:
    def kind(value: Any) -> str:
        return f"{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

    several = returned.items() if isinstance(returned, dict) else [("output", returned)]
    found = ", ".join(f"{name}: {kind(value)}" for name, value in several)
    return (
        f"`model`: expected a forward that returns logits [N, C], found {found}. Return them as {{'logits': ...}}, or "
        "load the model with AutoModelForSequenceClassification."
    )


def _of_tensors(output: Any) -> bool:
    """Whether it is a tensor or several; a decoder also returns its cache, under a name that changed in 5.24."""
    return isinstance(output, Tensor) or (isinstance(output, tuple) and all(isinstance(t, Tensor) for t in output))


class PureModel:
    """`params -> Outputs` for one batch, by `torch.func.functional_call`.

    Parameters of another precision than the model's (`float32_copies` of half-precision weights) are computed with in
    theirs: so are the frozen parameters, the buffers and the inputs.

    Args:
        model: the module, unwrapped (not DDP).
        inputs: keyword arguments of its forward.
        training: mode of the forward (dropout on or off).
        noise: random state at which every call starts; default: now.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], training: bool, noise: RNGState | None = None
    ) -> None:
        self.model, self.inputs, self.training = model, dict(inputs), training
        self.noise = noise or RNGState(next(model.parameters()).device)

    def __call__(self, params: Tensors) -> Outputs:
        buffers = {name: b.detach().clone() for name, b in self.model.named_buffers()}
        inputs, rest = self.inputs, {}
        precision = self._other_precision(params)
        if precision is not None:
            frozen = {name: p.detach() for name, p in self.model.named_parameters() if name not in params}
            rest, buffers, inputs = (
                {name: t.to(precision) if _is_half(t) else t for name, t in each.items()}
                for each in (frozen, buffers, inputs)
            )
        with in_mode(self.model, self.training), self.noise.replayed():
            return model_outputs(functional_call(self.model, {**rest, **params, **buffers}, (), inputs))

    def _other_precision(self, params: Tensors) -> torch.dtype | None:
        """That of `params`, where the model's own are in half precision and these are not."""
        own = dict(self.model.named_parameters())
        return next((p.dtype for name, p in params.items() if _is_half(own[name]) and not _is_half(p)), None)


def float32_copies(params: Tensors) -> Tensors:
    """Detached; those in half precision as float32 copies, in which a derivative is not lost in rounding.

    Example:
        >>> float32_copies({"w": torch.ones(2, dtype=torch.bfloat16)})
        {'w': tensor([1., 1.])}
    """
    return {name: p.detach().float() if _is_half(p) else p.detach() for name, p in params.items()}


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
