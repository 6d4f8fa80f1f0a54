"""Progress bars that say what goes on: training, evaluating, predicting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import datasets
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer
from transformers.trainer_utils import has_length
from transformers.utils import logging


class NamedBars(ProgressCallback):
    """`ProgressCallback`, each bar with its name.

    Args:
        training: name of the bar of training steps.
        logs: whether what is logged is printed as well.
    """

    def __init__(self, training: str = "Training", logs: bool = True) -> None:
        super().__init__()
        self.prediction_bar: tqdm | None = None
        self._training, self._logs = training, logs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.current_step = 0
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, desc=self._training, dynamic_ncols=True)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loader: Any = kwargs.get("eval_dataloader")
        trains = self.training_bar is not None
        if state.is_world_process_zero and self.prediction_bar is None and has_length(loader):
            name = "Evaluating" if trains else "Predicting"
            self.prediction_bar = tqdm(total=len(loader), desc=name, leave=not trains, dynamic_ncols=True)
        super().on_prediction_step(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._logs and "train_runtime" not in (logs or {}):  # the bar has shown how long it took
            super().on_log(args, state, control, logs=logs, **kwargs)

    def close(self) -> None:
        """Close the bars that are open: training was stopped, and nothing more is to be written by them."""
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


@contextlib.contextmanager
def closing_bars(trainer: Trainer) -> Iterator[None]:
    """Inside, a trainer works; its bars are closed however that ends."""
    try:
        yield
    finally:
        for each in trainer.callback_handler.callbacks:
            if isinstance(each, NamedBars):
                each.close()


def name_bars(trainer: Trainer, training: str = "Training", logs: bool = True) -> None:
    """Give the trainer's progress bars names, where it has bars (not with `disable_tqdm`, and not in a notebook)."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(NamedBars(training, logs))


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Inside: no progress bars of libraries, for work of a moment."""
    of_datasets, of_models = datasets.are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if not of_datasets:
            datasets.enable_progress_bars()
        if of_models:
            logging.enable_progress_bar()
