"""The learning rate of a step: a pure function, so a resumed run has nothing to restore."""

import math

from nvlm_train.config.schema import Train


def lr_at(step: int, train: Train) -> float:
    """Learning rate of the `step`-th optimizer step of a stage, counted from 1.

    Rises linearly over `warmup_steps` (the first step already moves: lr / warmup_steps), then follows half a cosine that comes to
    `min_lr` exactly at step `decay_steps`, by default the last one (paper Tables 10 and 11), and stays there; or stays at `lr` if
    the schedule is "constant".
    """
    if step < 1:
        raise ValueError(f"steps are counted from 1, got {step}")
    if step <= train.warmup_steps:
        return train.lr * step / train.warmup_steps
    if train.schedule == "constant":
        return train.lr
    last = train.steps if train.decay_steps is None else train.decay_steps
    progress = min(1.0, (step - train.warmup_steps) / max(1, last - train.warmup_steps))
    return train.min_lr + (train.lr - train.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
