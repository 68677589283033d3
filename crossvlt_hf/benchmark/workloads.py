"""Make models, inputs and steps of cases."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration_crossvlt import CrossVLTConfig
from ..modeling_crossvlt import CrossVLTModel
from ..system import check_least
from ..weights.checkpoint import load_checkpoint
from .backends import Run, one_image_each, open_network
from .cases import Case
from .peers import PEERS, Peer


Step = Callable[[], Any]


class Workshop:
    """Makes the steps of cases. Cases share models if possible.

    Args:
        folders: folders of checkpoints, by model and dtype of the weights, and files of exported networks: see
            `Case.weights`.
        seed: of inputs, and of the weights of peers.
        optimizer: of training steps: "adamw", or "none" for no update.
    """

    def __init__(self, folders: Mapping[str, Mapping[str, Any]], *, seed: int = 0, optimizer: str = "adamw") -> None:
        self.folders, self.seed, self.optimizer = folders, seed, optimizer
        self._models: dict[Case, CrossVLTModel | Peer] = {}
        self._networks: dict[Case, Run] = {}
        self._compiled: dict[Case, Callable[..., Any]] = {}
        self._optimizers: dict[Case, torch.optim.Optimizer | None] = {}

    def step(self, case: Case) -> Step:
        """Make the function to measure; its first call may be slower."""
        torch.manual_seed(self.seed)
        if case.exported:
            return self._exported_step(case)
        model = self._model(case)
        if isinstance(model, Peer):
            return model.step
        inputs = make_inputs(model.config, case)
        return (
            self._training_step(case, model, inputs) if case.task == "training" else self._inference_step(case, inputs)
        )

    def run(self, case: Case) -> Run:
        """The network of a case of inference, as a function from inputs by name to logits."""
        if not case.exported:
            return self._inference(case)
        if case.instance not in self._networks:
            path = self.folders[case.model][case.weights]
            self._networks[case.instance] = open_network(path, case.backend)
        return self._networks[case.instance]

    def parameters(self, case: Case) -> int | None:
        """Number of parameters of the model of a case; None for an exported network."""
        return None if case.exported else sum(parameter.numel() for parameter in self._model(case).parameters())

    def weights_bytes(self, case: Case) -> int:
        """Bytes of the parameters of the model of a case, or of the files of an exported network."""
        if case.exported:
            path = Path(self.folders[case.model][case.weights])
            return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        return sum(parameter.nbytes for parameter in self._model(case).parameters())

    def _model(self, case: Case) -> CrossVLTModel | Peer:
        if case.instance not in self._models:
            self._models[case.instance] = self._make_peer(case) if case.peer else self._make_model(case)
        return self._models[case.instance]

    def _make_peer(self, case: Case) -> Peer:
        return PEERS[case.model](case.device, getattr(torch, case.dtype))

    def _make_model(self, case: Case) -> CrossVLTModel:
        training, dtype = case.task == "training", case.weights
        model: Any = load_checkpoint(self.folders[case.model][dtype], device=case.device, dtype=dtype)[0]
        model.set_attn_implementation(case.attention)
        if training:
            model.train()
        if case.checkpointing:
            model.activation_checkpointing_enable()
        return model

    def _exported_step(self, case: Case) -> Step:
        config = CrossVLTConfig.from_pretrained(self.folders[case.model]["float32"])
        inputs = one_image_each(make_inputs(config, case), case.expressions)
        run = self.run(case)
        return lambda: run(inputs)

    def _inference_step(self, case: Case, inputs: dict[str, Tensor]) -> Step:
        run = self._inference(case)
        return lambda: run(inputs)

    def _inference(self, case: Case) -> Run:
        model: Any = self._model(case)
        if case.compiled:  # compiles once for each size and number of expressions
            model = self._compiled.setdefault(case.instance, torch.compile(model, dynamic=False))

        def run(inputs: dict[str, Tensor]) -> Tensor:
            with torch.no_grad():
                return model(**inputs, return_dict=True).logits

        return run

    def _training_step(self, case: Case, model: CrossVLTModel, inputs: dict[str, Tensor]) -> Step:
        optimizer = self._optimizers.setdefault(case.instance, self._make_optimizer(model))
        lower = case.dtype != "float32"
        device_type = torch.device(case.device).type

        def step() -> None:
            precision = torch.autocast(device_type, getattr(torch, case.dtype)) if lower else nullcontext()
            with precision:
                loss = model(**inputs, return_dict=True).loss
            loss.backward()
            if optimizer is not None:
                optimizer.step()
            model.zero_grad(set_to_none=True)

        return step

    def _make_optimizer(self, model: CrossVLTModel) -> torch.optim.Optimizer | None:
        return torch.optim.AdamW(model.parameters(), lr=3e-5, fused=True) if self.optimizer == "adamw" else None


def make_inputs(config: CrossVLTConfig, case: Case) -> dict[str, Tensor]:
    """Random inputs of a case, on its device, for a model with this config.

    Returns:
        `pixel_values` (batch, channels, height, width); `input_ids`, `attention_mask` (batch * expressions, tokens);
        `expressions_per_image` (batch,) if there are several; `labels` (batch, height, width) for training.
    """
    vision, text = config.vision_config, config.text_config
    if case.size is None:
        raise ValueError(f"The case {case.label} must have a size.")
    check_least("tokens", case.tokens, 1)
    shape = (case.batch * case.expressions, case.tokens)
    inputs = {
        "pixel_values": torch.randn(case.batch, vision.num_channels, *case.size),
        "input_ids": torch.randint(1, text.vocab_size, shape),
        "attention_mask": torch.ones(shape, dtype=torch.long),  # as from the processor
    }
    if case.expressions > 1:
        inputs["expressions_per_image"] = torch.full((case.batch,), case.expressions)
    if case.task == "training":
        inputs["labels"] = (torch.rand(case.batch, *case.size) > 0.9).long()
    return {name: value.to(case.device) for name, value in inputs.items()}
