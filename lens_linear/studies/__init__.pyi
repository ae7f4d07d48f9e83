from .downstream import DownstreamScores as DownstreamScores
from .downstream import downstream_scores as downstream_scores
from .pretraining import MEASURES as MEASURES
from .pretraining import STUDIES as STUDIES
from .pretraining import Study as Study
from .pretraining import StudyResult as StudyResult
from .pretraining import load_study as load_study
from .pretraining import run_study as run_study
from .published import PublishedTable as PublishedTable
from .published import published_beside_measured as published_beside_measured
from .study_tables import load_tables as load_tables
from .study_tables import save_tables as save_tables

__all__ = [
    "MEASURES",
    "STUDIES",
    "DownstreamScores",
    "PublishedTable",
    "Study",
    "StudyResult",
    "downstream_scores",
    "load_study",
    "load_tables",
    "published_beside_measured",
    "run_study",
    "save_tables",
]
