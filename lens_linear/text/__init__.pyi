from ._floors import EntropyFloors as EntropyFloors
from ._mood import MoodSentences as MoodSentences
from .concepts import Concept as Concept
from .concepts import ConceptSplit as ConceptSplit
from .concepts import load_concept as load_concept
from .corpora import batches as batches
from .corpora import default_stories as default_stories
from .corpora import default_text as default_text
from .corpora import pack as pack
from .corpora import read_documents as read_documents
from .corpora import read_text as read_text
from .huggingface import huggingface_text as huggingface_text
from .huggingface import stream_huggingface_text as stream_huggingface_text
from .labels import html_label as html_label
from .labels import text_label as text_label
from .labels import token_label as token_label
from .labels import token_labels as token_labels
from .labels import unique_labels as unique_labels
from .presets import PRESETS as PRESETS
from .presets import Preset as Preset
from .random_rows import RepeatedTokens as RepeatedTokens
from .random_rows import random_tokens as random_tokens
from .random_rows import repeated_tokens as repeated_tokens
from .synthetic import SyntheticLanguage as SyntheticLanguage
from .task import Task as Task
from .token_stream import TokenStream as TokenStream

__all__ = [
    "PRESETS",
    "Concept",
    "ConceptSplit",
    "EntropyFloors",
    "MoodSentences",
    "Preset",
    "RepeatedTokens",
    "SyntheticLanguage",
    "Task",
    "TokenStream",
    "batches",
    "default_stories",
    "default_text",
    "html_label",
    "huggingface_text",
    "load_concept",
    "pack",
    "random_tokens",
    "read_documents",
    "read_text",
    "repeated_tokens",
    "stream_huggingface_text",
    "text_label",
    "token_label",
    "token_labels",
    "unique_labels",
]
