"""Training with Accelerate: `accelerate launch -m crossvlt_hf.training CONFIG.yaml`."""

from .config import TrainingConfig, load_config
from .run import TrainingRun


__all__ = ["TrainingConfig", "TrainingRun", "load_config"]
