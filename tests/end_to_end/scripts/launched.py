"""Runs that are to come out alike on one process and on several: `accelerate launch launched.py FOLDER`.

Every case is trained on the planted problem; each process writes what it ended with to
FOLDER/<case>-<processes>-<rank>.safetensors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding
from transformers.distributed import DistributedConfig

sys.path.insert(0, str(Path(__file__).parents[2]))
import planted

from amal_hf import AMALConfig, AMALTrainer
from amal_hf.denoising import LOG_POSTERIOR
from amal_hf.denoising.inputs import prepare_rows
from amal_hf.metagrad import whole

GLOBAL_BATCH = 16
TRUST = {"method": "trust", "meta_every": 2, "meta_start": 1}
STEP = {"method": "amal-step", "mixing_lr": 0.1}
EVEN, SHORT, TINY = 64, 36, 12  # rows: whole batches; a short last one; fewer than one, some twice in it

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "trust": (EVEN, TRUST),
    "trust, short last batch": (SHORT, TRUST),
    "trust, rows twice in a batch": (TINY, {**TRUST, "num_train_epochs": 6}),
    "trust, accumulated": (EVEN, {**TRUST, "gradient_accumulation_steps": 2}),
    "amal-step": (EVEN, STEP),
    "amal-step, rows twice in a batch": (TINY, {**STEP, "num_train_epochs": 6}),
    "amal-step, raw and short": (SHORT, {**STEP, "mixing_scale": "raw", "mixing_lr": 10.0, "center": False}),
    "amal-step, whole network": (
        SHORT, {**STEP, "lookahead_params": "all", "lookahead": "optimizer", "meta_start": 2, "normalize": "mean"},
    ),
    "amal": (SHORT, {"method": "amal", "refresh_every": 1, "mixing_lr": 20.0, "meta_batch_size": 8}),
    "shared": (SHORT, {"method": "shared"}),
    "l2r": (SHORT, {"method": "l2r"}),
    "network": (SHORT, {"method": "network", "meta_every": 2, "meta_start": 1}),
    "fixed": (SHORT, {"method": "fixed"}),
    "denoise": (SHORT, {"method": "denoise"}),
    "stream": (EVEN, {**TRUST, "max_steps": 8}),
}  # fmt: skip
SPLIT = ("trust", "trust, accumulated", "amal-step, raw and short", "amal", "fixed")
"""Cases that also run with every parameter in parts (FSDP2), by the hand of each library."""
BY_TRANSFORMERS, BY_ACCELERATE = "FSDP2 by transformers", "FSDP2 by accelerate"


class InParts(AMALTrainer):
    """Accelerate's FSDP2 on a CPU. Accelerate lets only accelerators have it, so it is told that it was asked for."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["BertLayer"]
        )


def student_in_parts(folder: Path) -> torch.nn.Module:
    """Loaded so that each process has its part of every layer; the head is one by itself."""
    here = PartialState()
    if here.is_main_process:
        planted.make_student().double().save_pretrained(folder)
    here.wait_for_everyone()
    plan = {"bert.encoder.layer.*": "free_full_weight", "classifier": "keep_full_weight"}
    parts = DistributedConfig(fsdp_size=here.num_processes, fsdp_plan=plan)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64, distributed_config=parts)


def settings_of(case: str, processes: int) -> tuple[int, dict[str, Any]]:
    """Rows of the training set, and the settings that give every optimizer step the same rows."""
    rows, settings = CASES[case]
    accumulated = settings.get("gradient_accumulation_steps", 1)
    batch = GLOBAL_BATCH // processes // accumulated
    order = {"train_sampling_strategy": "sequential"} if rows % GLOBAL_BATCH else {}
    return rows, {"num_train_epochs": 3, **settings, **order, "per_device_train_batch_size": batch,
                  "per_device_eval_batch_size": GLOBAL_BATCH // 4 // processes}  # fmt: skip


def ended(
    folder: Path, case: str, processes: int, way: str = ""
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """What a run of `case` ends with, and the logs it wrote. In float64: no rounding for Adam to blow up."""
    rows, settings = settings_of(case, processes)
    train = planted.make_rows(rows, wrong=0.4)
    trained = InParts if way == BY_ACCELERATE else AMALTrainer
    settings = {**planted.SETTINGS, **settings}
    if settings["method"] in ("fixed", "denoise"):
        del settings["meta_batch_size"]  # they look nowhere ahead
    trainer = trained(
        model=student_in_parts(folder / "student") if way == BY_TRANSFORMERS else planted.make_student().double(),
        args=AMALConfig(str(folder / f"{case}-{processes}"), **settings),
        train_dataset=train.to_iterable_dataset() if case == "stream" else train,
        clean_dataset=planted.make_rows(12, seed=1),
        losses=planted.make_losses(),
        # as wide for every batch: accelerate hands a stream's batches out from one process, and joins them for that
        data_collator=DataCollatorWithPadding(planted.make_tokenizer(), padding="max_length", max_length=16),
        processing_class=planted.make_tokenizer(),
    )
    trainer.train()
    told = [{k: v for k, v in log.items() if k.startswith(("loss", "weight", "grad_norm"))}
            for log in trainer.state.log_history]  # fmt: skip
    assert not way or any(whole(p) is not p for p in trainer.model.parameters()), "no parameter is in parts"
    state = moved_by(trainer) | trainer.weigher.mixing.state() | trainer.weigher.history.state()
    return state | trainer.weigher.mean_weight.state(), told


def moved_by(trainer: AMALTrainer) -> dict[str, torch.Tensor]:
    """The parameters, whole."""
    return {name: whole(p.detach()).clone() for name, p in trainer.model.named_parameters()}


def stopped_and_continued(folder: Path, kind: type[AMALTrainer] = AMALTrainer) -> list[dict[str, torch.Tensor]]:
    """The end of a run that keeps checkpoints, and of one that goes on from its tenth step; with dropout."""
    settings = {**TRUST, "save_strategy": "steps", "save_steps": 5, "save_total_limit": 2, "num_train_epochs": 3}
    ends = []
    for start in (None, str(folder / "whole" / "checkpoint-10")):
        trainer = planted.make_trainer(
            folder / ("resumed" if start else "whole"), {**settings, "per_device_train_batch_size": 4}, kind,
            model=planted.make_student(dropout=0.2), train_dataset=planted.make_rows(36, wrong=0.4),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=start)
        ends.append(moved_by(trainer) | trainer.weigher.state_dict())
    return ends


def posterior(folder: Path) -> dict[str, torch.Tensor]:
    """What 9 clean rows say of 33 others and of themselves; neither number goes round."""
    trainer = planted.make_trainer(
        folder, {"method": "denoise"}, model=planted.make_student().double(), losses=planted.make_losses(),
        train_dataset=planted.make_rows(33, wrong=0.4, tokens=False),
        clean_dataset=planted.make_rows(9, seed=1, tokens=False),
    )  # fmt: skip
    found = prepare_rows(trainer)
    splits = {"rows": found.train.select(range(33)), "clean": found.clean}
    return {name: split.with_format("torch")[LOG_POSTERIOR][:] for name, split in splits.items()}


def main(folder: Path) -> None:
    here = PartialState(cpu=True)
    save_file(posterior(folder / "posterior"), folder / f"posterior-{here.process_index}.safetensors")
    kinds = {"": AMALTrainer, BY_TRANSFORMERS: AMALTrainer, BY_ACCELERATE: InParts}
    for way, kind in kinds.items():
        place = folder / way
        place.mkdir(exist_ok=True)
        for case in SPLIT if way else CASES:
            state, logs = ended(place, case, here.num_processes, way)
            name = f"{case}-{here.num_processes}-{here.process_index}"
            save_file({k: v.contiguous() for k, v in state.items()}, place / f"{name}.safetensors")
            (place / f"{name}.json").write_text(json.dumps(logs))
        if way == BY_TRANSFORMERS:
            continue  # which writes no optimizer's state, so that nothing can be continued
        for name, end in zip(("whole", "resumed"), stopped_and_continued(place, kind), strict=True):
            save_file({k: v.contiguous() for k, v in end.items()}, place / f"{name}-{here.process_index}.safetensors")
    here.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
