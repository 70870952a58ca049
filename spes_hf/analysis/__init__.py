"""What the maps say about speech and language: the analyses of section 8, for any explained corpus.

Each reads explanations (in memory, saved, or in rows) one at a time, and returns a result with numbers, tests, effect
sizes, ``plot()`` and ``to_dict()``:

=======================  ==================================================================================
`time_localization`      Do the maps of words lie where the words are spoken? (§8.1)
`frequency_profile`      At which frequencies does a word or a phone matter? (§8.1, Fig. 7)
`scatter`                Which tokens' maps are sharp, and which are scattered? (§8.2, Fig. 10)
`modality_balance`       Does a token come from the sound or from the text? (§8.2)
`positional`             Which earlier tokens matter: the first, the latest, those between? (§8.3, Fig. 11)
`intermediate_tokens`    Which tokens are explained by one further back, and by which? (§8.3, Table 10)
`error_causes`           Which errors were misheard, which guessed, and at which frequencies? (from rows of `Diagnose`)
`attention_agreement`    Does the decoder look at what it uses? (from `utterance_agreement` of each utterance)
=======================  ==================================================================================
"""

from spes_hf.analysis.alignments import Alignment, AlignmentError, Phone, Word, read_alignment
from spes_hf.analysis.attention import AttentionAgreement, UtteranceAgreement, attention_agreement, utterance_agreement
from spes_hf.analysis.causes import Confusion, ErrorCauses, ErrorGroup, error_causes
from spes_hf.analysis.corpus import saved_explanations
from spes_hf.analysis.forced import align_explanation, align_words
from spes_hf.analysis.intermediate import IntermediateTokens, intermediate_tokens
from spes_hf.analysis.localization import TimeLocalization, time_localization
from spes_hf.analysis.matching import match_words
from spes_hf.analysis.modality import ModalityBalance, modality_balance
from spes_hf.analysis.overview import plot_overview
from spes_hf.analysis.positions import Positional, positional
from spes_hf.analysis.profiles import FrequencyProfiles, Profile, ProfileComparison, compare_profiles, frequency_profile
from spes_hf.analysis.scattering import Scatter, scatter
from spes_hf.analysis.stats import Test

__all__ = [
    "Alignment",
    "AlignmentError",
    "AttentionAgreement",
    "Confusion",
    "ErrorCauses",
    "ErrorGroup",
    "FrequencyProfiles",
    "IntermediateTokens",
    "ModalityBalance",
    "Phone",
    "Positional",
    "Profile",
    "ProfileComparison",
    "Scatter",
    "Test",
    "TimeLocalization",
    "UtteranceAgreement",
    "Word",
    "align_explanation",
    "align_words",
    "attention_agreement",
    "compare_profiles",
    "error_causes",
    "frequency_profile",
    "intermediate_tokens",
    "match_words",
    "modality_balance",
    "plot_overview",
    "positional",
    "read_alignment",
    "saved_explanations",
    "scatter",
    "time_localization",
    "utterance_agreement",
]
