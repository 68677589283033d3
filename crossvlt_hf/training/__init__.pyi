from .config import TrainingConfig as TrainingConfig
from .config import load_config as load_config
from .curves import training_curves as training_curves
from .run import TrainingRun as TrainingRun
