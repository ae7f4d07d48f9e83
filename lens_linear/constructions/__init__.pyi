from .induction_model import InductionConstruction as InductionConstruction
from .induction_model import build_induction as build_induction
from .least_squares.hat import HatMatrix as HatMatrix
from .least_squares.newton_schulz import NewtonSchulzAttention as NewtonSchulzAttention
from .least_squares.newton_schulz import gradient_step_attention as gradient_step_attention
from .least_squares.ols import OLSAttention as OLSAttention
from .least_squares.ols_training import OLSTraining as OLSTraining
from .least_squares.ols_training import regression_data as regression_data
from .least_squares.ols_training import train_ols_attention as train_ols_attention
from .least_squares.ols_transformer import OLSTransformer as OLSTransformer
from .least_squares.ols_transformer import ols_transformer as ols_transformer
from .least_squares.slow_fast import MemorySwap as MemorySwap
from .least_squares.slow_fast import ShiftCurve as ShiftCurve
from .least_squares.slow_fast import covariance_shift as covariance_shift
from .least_squares.slow_fast import swap_memories as swap_memories
from .least_squares.spectral import SpectralRoot as SpectralRoot
from .least_squares.spectral import spectral_root as spectral_root
from .memory.capacity import MemoryCapacity as MemoryCapacity
from .memory.capacity import memory_capacity as memory_capacity
from .memory.dial import AttentionDial as AttentionDial
from .memory.dial import attention_dial as attention_dial
from .memory.energies import hopfield_energy as hopfield_energy
from .memory.energies import hopfield_update as hopfield_update
from .memory.head_dial import HeadDial as HeadDial
from .memory.head_dial import head_dial as head_dial
from .memory.head_memory import HeadMemory as HeadMemory
from .memory.head_memory import attention_head_memory as attention_head_memory
from .memory.retrieval import RetrievalCurve as RetrievalCurve
from .memory.retrieval import retrieval_curve as retrieval_curve
from .memory.trained_head import trained_head_memory as trained_head_memory
from .memory.trained_heads import TrainedHeads as TrainedHeads
from .memory.trained_heads import trained_heads as trained_heads

__all__ = [
    "AttentionDial",
    "HatMatrix",
    "HeadDial",
    "HeadMemory",
    "InductionConstruction",
    "MemoryCapacity",
    "MemorySwap",
    "NewtonSchulzAttention",
    "OLSAttention",
    "OLSTraining",
    "OLSTransformer",
    "RetrievalCurve",
    "ShiftCurve",
    "SpectralRoot",
    "TrainedHeads",
    "attention_dial",
    "attention_head_memory",
    "build_induction",
    "covariance_shift",
    "gradient_step_attention",
    "head_dial",
    "hopfield_energy",
    "hopfield_update",
    "memory_capacity",
    "ols_transformer",
    "regression_data",
    "retrieval_curve",
    "spectral_root",
    "swap_memories",
    "train_ols_attention",
    "trained_head_memory",
    "trained_heads",
]
