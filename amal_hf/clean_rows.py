"""The clean rows of a trainer, as its lookahead asks them: bound to model, optimizer and batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from amal_hf._distributed import summed
from amal_hf._window import Window
from amal_hf.build import make_lookahead, make_virtual_step
from amal_hf.data.columns import clean_rows_and_labels
from amal_hf.lookahead import Batch, Lookahead
from amal_hf.losses.stack import class_losses
from amal_hf.metagrad import LazyStep, RNGState, VirtualStep


def lookahead_for(trainer: Any, inputs: Mapping[str, Any]) -> Lookahead:
    """How D `[N, K]` is computed for the trainer's model; `inputs` is any batch of the model's inputs."""
    rows = trainer._remove_unused_columns(trainer.clean_dataset, "clean")
    clean, labels = clean_rows_and_labels(rows, trainer.args.device)
    batch = lambda at: trainer._prepare_inputs(trainer.data_collator(clean.__getitems__([*at])))  # noqa: E731
    encode = lambda at: trainer.model_inputs(batch(at))  # noqa: E731
    model, precision = trainer.accelerator.unwrap_model(trainer.model), trainer.accelerator.mixed_precision
    return make_lookahead(model, labels, encode, inputs, trainer.settings, precision, trainer.task, trainer.optimizer)


def virtual_step(trainer: Any) -> VirtualStep:
    """The lookahead's step, from the optimizer's state when it is to be ready."""

    def make() -> VirtualStep:
        model = trainer.accelerator.unwrap_model(trainer.model)
        return make_virtual_step(trainer.settings.lookahead, trainer.optimizer, model, trainer._get_learning_rate())

    return LazyStep(make, needs_gradient=trainer.settings.lookahead != "none")


def prepare_batch(trainer: Any, inputs: dict[str, Any], model_inputs: dict[str, Any], window: Window) -> Batch | None:
    """A batch before its forward, with what the lookahead does before it; None where no clean row is asked yet.

    Args:
        inputs: the batch, on the model's device.
        model_inputs: what the model reads of it.
        window: the optimizer step that it belongs to.
    """
    settings, weigher, stack, state = trainer.settings, trainer.weigher, trainer.stack, trainer.state
    start = settings.meta_start
    after = state.global_step - int(start * state.max_steps if start < 1 else start)
    if after < 0:
        return None
    step = virtual_step(trainer)
    both = weigher.mixing.reads == "losses" or step.needs_gradient or weigher.temperatures > 0
    batch = Batch(
        inputs=model_inputs,
        noise=RNGState(trainer.args.device),
        losses_of=(lambda out: stack.with_classes(out, inputs)) if both else class_losses,
        # of the classes alone up to a number per row, which the class gradient does not see
        along_of=lambda out, tangent: stack.along(out, tangent, inputs) if both else -tangent,
        lookahead=step,
        num_rows=window.num_rows,
        due=after % settings.meta_every == 0,
        new=weigher.first_of(state.global_step),
        last=trainer.accelerator.sync_gradients,
        sources=len(stack) if both else 0,
        temperatures=weigher.temperatures,
        summed=partial(summed, trainer.accelerator),
    )
    with weigher.clock:
        weigher.lookahead.prepare(batch)
    return batch
