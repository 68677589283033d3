"""Parameter groups, optimizer, schedule, averaged weights, and losses normalised over all processes."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import SchedulerType, get_scheduler

from ..data.readable import Batch
from ..modeling_crossvlt import CLASS_WEIGHTS, IGNORE_INDEX, CrossVLTModel, CrossVLTOutput, total_loss
from ..system import check_known
from .config import OptimizationOptions, TrainingConfig


LANGUAGE_STAGES = "text_model.stages."
NORMS = (nn.LayerNorm, _BatchNorm)  # the latter is what SyncBatchNorm is, too
LOSS_TERMS = ("mask_loss", "alignment_loss", "dice_loss", "presence_loss")  # of a model's output
UNDECAYED = ("relative_position_bias_table", "temperature")


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether the hardware has instructions for products of bfloat16; where it emulates them, float32 is faster.

    Measured on a CPU with AVX2 only: a training step in emulated bfloat16 takes 6 times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def settle_precision(config: TrainingConfig) -> TrainingConfig:
    """Replace "auto" by the precision that suits the device, so that the folder of the run has what was used."""
    if config.optimization.mixed_precision != "auto":
        return config
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as the Accelerator, which is made next, does
    precision: Literal["bf16", "no"] = "bf16" if multiplies_in_bf16(state.device) else "no"
    return replace(config, optimization=replace(config.optimization, mixed_precision=precision))


def choose_attention(accelerator: Accelerator) -> str:
    """The name of the faster attention function for training on the device in the precision of the run.

    Measured on a CPU with AVX-512 in bfloat16: the backward pass of torch's fused attention takes 4 ms for 16 tokens
    with 4 heads of 24 channels and a batch of 32, in sum a sixth of the whole training step of `refshapes-64`.
    """
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    return "eager" if slow else "sdpa"


def parameter_groups(model: CrossVLTModel, options: OptimizationOptions) -> list[dict[str, Any]]:
    """Group the trained parameters by weight decay and learning rate (section IV-B, and the authors' code).

    Norms, relative position biases and temperatures have no weight decay.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = id(parameter) not in norms and not name.endswith(UNDECAYED)
        rate = options.learning_rate
        if options.text_learning_rate is not None and name.startswith(LANGUAGE_STAGES):
            rate = options.text_learning_rate
        groups.setdefault((rate, options.weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def build_optimizer(model: CrossVLTModel, options: OptimizationOptions) -> torch.optim.Optimizer:
    """Fused AdamW."""
    beta1, beta2 = options.betas
    return torch.optim.AdamW(parameter_groups(model, options), betas=(beta1, beta2), fused=True)


def build_schedule(optimizer: torch.optim.Optimizer, options: OptimizationOptions, steps: int) -> Any:
    """Build the learning rate schedule.

    Raises:
        ValueError: if there is no such schedule, or it has no such options.
    """
    known = [str(kind.value) for kind in SchedulerType if kind != SchedulerType.REDUCE_ON_PLATEAU]  # needs metrics
    check_known("optimization.schedule", options.schedule, known)
    try:
        return get_scheduler(
            options.schedule,
            optimizer,
            num_warmup_steps=options.warmup_steps,
            num_training_steps=steps,
            scheduler_specific_kwargs=options.schedule_options,
        )
    except TypeError as error:
        raise ValueError(f"`optimization.schedule_options` is {options.schedule_options}: {error}") from error


def build_average(model: CrossVLTModel, decay: float | None) -> AveragedModel | None:
    """Build the exponential moving average of weights and BatchNorm statistics; None without a decay."""
    if decay is None:
        return None
    average = get_ema_multi_avg_fn(decay)

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:  # torch would also average and truncate integers, such as indices
            torch._foreach_copy_(list(averaged), list(current))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def loss_counts(labels: Tensor) -> Tensor:
    """The numbers that the losses of a batch of (B, H, W) labels are averaged over, for `normalised_loss`.

    Returns:
        (4,) int64: background pixels, object pixels, samples, samples with a label that is not ignored.
    """
    background, object_ = (labels == 0).sum(), (labels == 1).sum()
    labelled = (labels != IGNORE_INDEX).flatten(1).any(1).sum()
    return torch.stack([background, object_, background.new_tensor(len(labels)), labelled])


def normalised_loss(model: CrossVLTModel, output: CrossVLTOutput, own: Tensor, total: Tensor) -> Tensor:
    """The contribution of a batch to the loss of a step.

    The contributions of all processes and accumulated batches add up to the loss of one large batch. The mean of the
    losses of batches would not, since batches have different numbers of object pixels.

    Args:
        model: its config has the weights of the losses.
        output: of the batch.
        own: `loss_counts` of the batch.
        total: `loss_counts` of all batches of the step.
    """
    weigh = own.new_tensor([[*CLASS_WEIGHTS, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float32)
    weighted, valid, samples, labelled = ((weigh @ own.float()) / (weigh @ total.float()).clamp(min=1)).unbind()
    losses: Any = output
    dice = 0.0 if losses.dice_loss is None else losses.dice_loss * samples
    presence = 0.0 if losses.presence_loss is None else losses.presence_loss * labelled
    return total_loss(model.config, losses.mask_loss * weighted, losses.alignment_loss * valid, dice, presence)


def check_loss(accelerator: Accelerator, loss: Tensor, batches: Sequence[Batch], step: int) -> None:
    """Check that the loss is finite, before it changes the weights; called by all processes.

    Raises:
        FloatingPointError: if it is not; names the pairs of this step.
    """
    mean = accelerator.reduce(loss, "mean").item()
    if math.isfinite(mean):
        return
    own = [name for batch in batches for name in batch.names] if not loss.isfinite() else []
    names = gather_object(own) if accelerator.num_processes > 1 else own
    raise FloatingPointError(
        f"The loss is {mean} at step {step}; lower `optimization.learning_rate`, or set `optimization.max_grad_norm`. "
        f"Checkpoints are intact. The pairs of this step: {', '.join(names)}"
    )


def set_training_mode(network: nn.Module, options: OptimizationOptions) -> None:
    """Put a network into training mode, except frozen BatchNorms."""
    network.train()
    if options.freeze_batch_norm:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
