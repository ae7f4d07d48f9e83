from .gains.agreement import Agreement as Agreement
from .gains.agreement import compare_gains as compare_gains
from .gains.directions import ConceptDirections as ConceptDirections
from .gains.directions import concept_directions as concept_directions
from .gains.directions import last_states as last_states
from .gains.directions import random_directions as random_directions
from .gains.gain_profile import GainProfile as GainProfile
from .gains.gain_profile import gain_profile as gain_profile
from .gains.jacobian_products import BlockJacobians as BlockJacobians
from .gains.jacobian_products import block_jacobians as block_jacobians
from .gains.prompts import as_prompts as as_prompts
from .gains.step_size import StepSizeTable as StepSizeTable
from .gains.step_size import step_size_table as step_size_table
from .steering.generation import SteeredText as SteeredText
from .steering.generation import SteeringCost as SteeringCost
from .steering.generation import steer_text as steer_text
from .steering.generation import steering_cost as steering_cost
from .steering.joint import JointSteering as JointSteering
from .steering.joint import steer_concepts as steer_concepts
from .steering.min_energy import Schedule as Schedule
from .steering.min_energy import joint_min_energy as joint_min_energy
from .steering.min_energy import min_energy as min_energy
from .steering.refinement import refined_min_energy as refined_min_energy
from .steering.schedules import ScheduleComparison as ScheduleComparison
from .steering.schedules import evaluate_schedules as evaluate_schedules
from .surrogates.agreement_table import AgreementTable as AgreementTable
from .surrogates.agreement_table import agreement_table as agreement_table
from .surrogates.bases import BASES as BASES
from .surrogates.bases import Bases as Bases
from .surrogates.bases import Basis as Basis
from .surrogates.surrogate import JACOBIANS as JACOBIANS
from .surrogates.surrogate import JacobianKind as JacobianKind
from .surrogates.surrogate import Surrogate as Surrogate
from .surrogates.surrogate import fit_surrogate as fit_surrogate

__all__ = [
    "BASES",
    "JACOBIANS",
    "Agreement",
    "AgreementTable",
    "Bases",
    "Basis",
    "BlockJacobians",
    "ConceptDirections",
    "GainProfile",
    "JacobianKind",
    "JointSteering",
    "Schedule",
    "ScheduleComparison",
    "SteeredText",
    "SteeringCost",
    "StepSizeTable",
    "Surrogate",
    "agreement_table",
    "as_prompts",
    "block_jacobians",
    "compare_gains",
    "concept_directions",
    "evaluate_schedules",
    "fit_surrogate",
    "gain_profile",
    "joint_min_energy",
    "last_states",
    "min_energy",
    "random_directions",
    "refined_min_energy",
    "steer_concepts",
    "steer_text",
    "steering_cost",
    "step_size_table",
]
