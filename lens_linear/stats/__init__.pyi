from .collect import SequenceSums as SequenceSums
from .collect import collect_moments as collect_moments
from .collect import common_sites as common_sites
from .collect import gather_rows as gather_rows
from .collect import score_fits as score_fits
from .evaluation import evaluation_tokens as evaluation_tokens
from .model_scores import ModelScores as ModelScores
from .model_scores import perplexity as perplexity
from .model_scores import score_model as score_model
from .ngrams import BigramCounts as BigramCounts
from .ngrams import bigram_counts as bigram_counts
from .ngrams import bigram_entropy as bigram_entropy
from .ngrams import bigram_kl as bigram_kl
from .resume import Checkpoint as Checkpoint
from .resume import Key as Key
from .resume import fingerprint as fingerprint
from .split import RowView as RowView
from .split import as_rows as as_rows
from .split import halves as halves
from .task_scores import RowScores as RowScores
from .task_scores import answer_values as answer_values
from .task_scores import require_task as require_task
from .task_scores import score_answers as score_answers
from .task_scores import warn_if_not_next_token as warn_if_not_next_token

__all__ = [
    "BigramCounts",
    "Checkpoint",
    "Key",
    "ModelScores",
    "RowScores",
    "RowView",
    "SequenceSums",
    "answer_values",
    "as_rows",
    "bigram_counts",
    "bigram_entropy",
    "bigram_kl",
    "collect_moments",
    "common_sites",
    "evaluation_tokens",
    "fingerprint",
    "gather_rows",
    "halves",
    "perplexity",
    "require_task",
    "score_answers",
    "score_fits",
    "score_model",
    "warn_if_not_next_token",
]
