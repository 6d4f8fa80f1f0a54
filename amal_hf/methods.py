"""The table of methods: name -> settings; every system of the literature is a row."""

from __future__ import annotations

from typing import Any

METHODS: dict[str, dict[str, Any]] = {
    # Sources compete during training. Against "amal": trust instead of a free table (rows share what they learn about a
    # source, and a row where nobody is right weighs little); refreshed inside every training step, so
    # it works in 3 epochs instead of 100; V on all clean rows at once, and blended with a head retrained
    # from zero, because the one-step lookahead favours whichever source has the larger residual.
    "trust": {"mixing": "trust", "probe_weight": 0.7, "meta_every": 10, "meta_start": 0.1, "normalize": "mean"},
    # The authors' settings: free table in a box, last layer, plain SGD lookahead, α = 1500, a pass over
    # the training set every 10 epochs with 5 repetitions a group; label 0.1, teachers 0.9.
    "amal": {
        "mixing": "instance",
        "constraint": "box",
        "refresh": "epoch",
        "refresh_every": 10,
        "refresh_repeats": 5,
        "lookahead": "sgd",
        "mixing_scale": "raw",
        "mixing_lr": 1500.0,
        "mixing_start": [0.1, 0.9],
        "meta_batch_size": 1000,
    },
    # AMAL's table inside the training step: a unit-length direction makes κ free of scale, and centring
    # holds the mean weight, which otherwise drifts to a clamp.
    "amal-step": {"mixing": "instance", "constraint": "box", "lookahead": "sgd", "center": True},
    # Version 1 of the same paper: a convex mixture per row.
    "alm-kd": {"mixing": "instance", "constraint": "simplex", "lookahead": "sgd"},
    "shared": {"mixing": "shared", "constraint": "simplex", "lookahead": "sgd"},
    # Learning to reweight: the rectified meta-gradient of the whole network is the weight, at θ′ = θ, anew at every
    # step. (Steered by the head alone it is another method, and a poor one.)
    "l2r": {"mixing": "reweight", "lookahead_params": "all"},
    # Meta-Weight-Net: losses in, weights out. Held at mean 1 (the original is not): the net may sink every weight.
    "meta-weight-net": {"mixing": "meta-weight-net", "lookahead": "sgd", "mixing_lr": 1e-3, "normalize": "mean"},
    # A network that also reads votes and agreement; steered as "trust" is, twice as often.
    "network": {
        "mixing": "network",
        "mixing_lr": 1e-3,
        "probe_weight": 0.7,
        "meta_every": 5,
        "meta_start": 0.1,
        "normalize": "mean",
    },
    # The default: what the clean rows know is asked once, before training (`amal_hf.denoising`), so
    # that they can be trained on as well. No lookahead and no further forward: a step costs what a plain one does.
    "denoise": {"mixing": "corrected", "normalize": "mean"},
    # The incumbent: hand-set weights, all equal unless `mixing_start` says otherwise.
    "fixed": {"mixing": "fixed"},
    # Whatever `mixing` and the other settings say.
    "custom": {},
}

# A table starves a regression: residuals are unbounded, and one visit takes a row to 0 or 2. What a loss is worth is
# learned once for all rows here, and rows of a stream have it too.
WITHOUT_CLASSES = "meta-weight-net"
"""The method to name for a head that does not name one class a row."""

PREDICTED = ("meta-weight-net", "network")
"""Mixings that are networks, learned by Adam: κ of a table would be far too large a step."""

DEFAULTS: dict[str, Any] = {
    "mixing": "trust",
    "constraint": "box",
    "clamp": [1e-7, 2 - 1e-7],
    "mixing_start": [1.0],
    "mixing_lr": 0.2,
    "mixing_scale": "unit",
    "center": False,
    "normalize": "none",
    "table_dtype": "float32",
    "refresh": "step",
    "refresh_every": 1,
    "refresh_repeats": 1,
    "meta_every": 1,
    "meta_start": 0.0,
    "meta_batch_size": 64,
    "lookahead": "none",
    "lookahead_params": "head",
    "estimator": "auto",
    "probe_weight": 0.0,
    "reader": "",
    "reader_layers": [],
    "reader_pooling": "auto",
    "reader_prompt": "",
}

HOW_OFTEN = ("meta_every", "meta_start", "meta_batch_size")
LOOKAHEAD = ("lookahead", "lookahead_params", "estimator", "probe_weight", "center", "mixing_scale")
EPOCHS = ("refresh", "refresh_every", "refresh_repeats")
POOLINGS = ("mean", "cls", "last")
READER = ("reader", "reader_layers", "reader_pooling", "reader_prompt")
"""Settings of the lookahead, of a schedule by epochs, and of the encoder that reads rows before training."""

READS: dict[str, tuple[str, ...]] = {
    "corrected": ("normalize", "mixing_start", "table_dtype", *READER),
    "fixed": ("normalize", "mixing_start", "table_dtype"),
    "trust": ("normalize", "mixing_start", "table_dtype", *HOW_OFTEN, *LOOKAHEAD),
    "reweight": ("normalize", "mixing_start", "table_dtype", *HOW_OFTEN, *LOOKAHEAD),
    "meta-weight-net": ("normalize", "mixing_lr", "table_dtype", *HOW_OFTEN, *LOOKAHEAD),
    "network": ("normalize", "mixing_lr", "mixing_start", "table_dtype", *HOW_OFTEN, *LOOKAHEAD),
    "shared": ("normalize", "mixing_lr", "mixing_start", "constraint", "clamp", "table_dtype", *HOW_OFTEN, *LOOKAHEAD,
               *EPOCHS),
    "instance": ("normalize", "mixing_lr", "mixing_start", "constraint", "clamp", "table_dtype", *HOW_OFTEN, *LOOKAHEAD,
                 *EPOCHS),
}  # fmt: skip
"""Mixing -> the settings that it reads; any other is refused where it is given."""
