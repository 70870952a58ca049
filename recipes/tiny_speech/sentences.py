# Copyright 2026 The spes_hf authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""A miniature speech translation corpus: English sentences with exact, word-aligned German and Spanish translations.

The grammar has about 200 English words and is designed for reordering. German reverses two-digit numbers ("twenty
three", "dreiundzwanzig") and moves verbs to the end of a clause; Spanish puts adjectives after the noun. Every target
word knows the source words that it translates, so a saliency map can be compared with the truth.

Examples:
    >>> sentence = generate_sentences(1, seed=0)[0]
    >>> sorted(sentence.target) == ["de", "es"] and len(sentence.alignment("de")) == len(sentence.words("de"))
    True
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tiny_speech import lexicon

LANGUAGES = ("de", "es")
KINDS = ("statement", "number", "verb-final", "question", "parenthesis")
# With `speaker_gender`: the voice alone determines an adjective's gender, or a word as well, or a word alone.
SPEAKER_KINDS = ("speaker", "speaker-cue", "third-person")

Target = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Phrase:
    """English words with aligned translations: `target[lang]` holds (word, indices of the English words)."""

    source: tuple[str, ...]
    target: dict[str, tuple[Target, ...]]


@dataclass(frozen=True)
class Sentence(Phrase):
    """A finished sentence of the corpus and the kind of reordering that it shows.

    `speaker` is the gender of the voice that must speak it, "f" or "m"; None if any voice may.
    """

    kind: str = "statement"
    speaker: str | None = None

    @property
    def text(self) -> str:
        """The English text."""
        return " ".join(self.source)

    def translation(self, language: str) -> str:
        """The text in `language` ("de" or "es")."""
        return " ".join(self.words(language))

    def words(self, language: str) -> list[str]:
        """The words in `language` ("en", "de" or "es"), split at whitespace, with punctuation attached."""
        return list(self.source) if language == "en" else [word for word, _ in self.target[language]]

    def alignment(self, language: str) -> list[list[int]]:
        """For each word in `language` the indices of the English words that it translates (may be empty)."""
        return [list(sources) for _, sources in self.target[language]]

    def moved(self, language: str) -> list[dict[str, str | int]]:
        """The target content words that cross another word and that a monotonic alignment would misplace.

        Those furthest from their monotonic position come first. Parts of a fused German number are listed with the
        extra field `part`, e.g. "drei" and "zwanzig" of "dreiundzwanzig".
        """
        words, links = self.words(language), self.alignment(language)
        found: list[dict[str, str | int]] = []
        for i, sources in enumerate(links):
            monotonic = round(i * (len(self.source) - 1) / max(len(words) - 1, 1))
            crossing = any(
                other and sources and (min(other) > max(sources) if k < i else max(other) < min(sources))
                for k, other in enumerate(links)
                if k != i
            )
            base: dict[str, str | int] = {"target": words[i], "target_index": i, "monotonic_index": monotonic}
            if "und" in words[i] and len(sources) == 2 and self.source[sources[0]] in lexicon.TENS_EN:
                ones, tens = words[i].split("und", 1)
                parts = [(ones, sources[1]), (tens, sources[0])]
                found += [base | {"part": p, "source_word": self.source[j], "source_index": j} for p, j in parts]
            elif (
                crossing
                and len(sources) == 1
                and sources[0] != monotonic
                and self.source[sources[0]].lower() not in lexicon.FUNCTION_WORDS
            ):
                found.append(base | {"source_word": self.source[sources[0]], "source_index": sources[0]})
        return sorted(found, key=lambda row: -abs(int(row["source_index"]) - int(row["monotonic_index"])))


def phrase(source: str, de: str, es: str) -> Phrase:
    """Returns a phrase from English words and `word/indices` translations, e.g. "dreiundzwanzig/0+1"."""

    def parse(text: str) -> tuple[Target, ...]:
        pairs = (item.split("/") for item in text.split())
        return tuple((word, tuple(int(i) for i in links.split("+") if i)) for word, links in pairs)

    return Phrase(tuple(source.split()), {"de": parse(de), "es": parse(es)})


def join(*parts: Phrase, de: Sequence[int] | None = None, es: Sequence[int] | None = None) -> Phrase:
    """Returns the parts in English order; `de` and `es` give the order of the parts in the translations."""
    offsets = np.cumsum([0] + [len(part.source) for part in parts]).tolist()
    target = {}
    for language, order in (("de", de), ("es", es)):
        target[language] = tuple(
            (word, tuple(i + offsets[p] for i in links))
            for p in (range(len(parts)) if order is None else order)
            for word, links in parts[p].target[language]
        )
    return Phrase(tuple(word for part in parts for word in part.source), target)


def _map_edges(words: Sequence[str], first: Callable[[str], str], last: Callable[[str], str]) -> list[str]:
    words = list(words)
    words[0] = first(words[0])
    words[-1] = last(words[-1])
    return words


def _edit(part: Phrase, first: Callable[[str], str], last: Callable[[str], str]) -> Phrase:
    target = {}
    for language, pairs in part.target.items():
        words = _map_edges([word for word, _ in pairs], first, last)
        target[language] = tuple((word, links) for word, (_, links) in zip(words, pairs, strict=True))
    return Phrase(tuple(_map_edges(part.source, first, last)), target)


def wrap(part: Phrase, opening: str, closing: str) -> Phrase:
    """Returns the phrase with a mark attached to its first and its last word in all three languages."""
    return _edit(part, lambda word: opening + word, lambda word: word + closing)


def _capital(word: str) -> str:
    return word[:2].upper() + word[2:] if word[0] == "¿" else word[0].upper() + word[1:]


def number_phrase(number: int, gender: str | None = None) -> Phrase:
    """Returns `number` (0–99) as an aligned phrase."""
    words = lexicon.number_words(number, gender)
    both = "0+1" if " " in words["en"] else "0"
    spanish = words["es"].split()
    aligned = f"{spanish[0]}/0 y/ {spanish[2]}/1" if len(spanish) == 3 else f"{spanish[0]}/{both}"
    return phrase(words["en"], f"{words['de']}/{both}", aligned)


def object_phrase(noun: tuple[str, ...], adjective: tuple[str, ...], definite: bool = True) -> Phrase:
    """Returns article, adjective and noun as a direct object, e.g. "the red house"."""
    english, _, de_gender, german, _, es_gender, spanish, _ = noun
    word, stem, masculine, feminine = adjective
    if definite:
        article, ending = {"m": ("den", "en"), "f": ("die", "e"), "n": ("das", "e")}[de_gender]
        es_article = {"m": "el", "f": "la"}[es_gender]
    else:
        article, ending = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}[de_gender]
        es_article = {"m": "un", "f": "una"}[es_gender]
    source = f"{'the' if definite else 'an' if word[0] in 'aeiou' else 'a'} {word} {english}"
    agreed = masculine if es_gender == "m" else feminine
    return phrase(source, f"{article}/0 {stem}{ending}/1 {german}/2", f"{es_article}/0 {spanish}/2 {agreed}/1")


def count_phrase(number: int, noun: tuple[str, ...], adjective: tuple[str, ...] | None = None) -> Phrase:
    """Returns a counted plural as a direct object, e.g. "twenty three red books"; `number` from 2."""
    plural = phrase(noun[1], f"{noun[4]}/0", f"{noun[7]}/0")
    count = number_phrase(number, noun[5])
    if adjective is None:
        return join(count, plural)
    agreed = adjective[2] if noun[5] == "m" else adjective[3]
    spanish = agreed + ("es" if agreed[-1] not in "aeiou" else "s")
    return join(count, phrase(adjective[0], f"{adjective[1]}e/0", f"{spanish}/0"), plural, es=(0, 2, 1))


class Grammar:
    """Draws sentences from the grammar; the same `seed` gives the same sentences."""

    def __init__(self, seed: int) -> None:
        """Creates a grammar with its own random state."""
        self.random = random.Random(seed)

    def subject(self) -> tuple[Phrase, str]:
        """Returns a subject and its gender: a name or, less often, a role with an article."""
        if self.random.random() < 0.65:
            name, gender = self.random.choice(lexicon.NAMES)
            return phrase(name, f"{name}/0", f"{name}/0"), gender
        *texts, gender = self.random.choice(lexicon.ROLES)
        return phrase(*texts), gender

    def object(self) -> Phrase:
        """Returns a direct object with an adjective."""
        noun, adjective = self.random.choice(lexicon.NOUNS), self.random.choice(lexicon.ADJECTIVES)
        return object_phrase(noun, adjective, definite=self.random.random() < 0.7)

    def counted(self) -> Phrase:
        """Returns a counted direct object, mostly with a number that German swaps."""
        number = self.random.randint(21, 99) if self.random.random() < 0.75 else self.random.randint(2, 20)
        return count_phrase(
            number,
            self.random.choice(lexicon.NOUNS),
            self.random.choice(lexicon.ADJECTIVES) if self.random.random() < 0.25 else None,
        )

    def verb(self, form: str = "finite") -> Phrase:
        """Returns a verb as "finite" (third person), "infinitive" or "participle"."""
        index = ("finite", "infinitive", "participle").index(form)
        forms = self.random.choice(lexicon.VERBS)
        return phrase(forms[index], f"{forms[3 + index]}/0", f"{forms[6 + index]}/0")

    def time(self) -> Phrase:
        """Returns a day or a time of day."""
        if self.random.random() < 0.5:
            day = self.random.choice(lexicon.DAYS)
            return phrase(f"on {day[0]}", f"am/0 {day[1]}/1", f"el/0 {day[2]}/1")
        hour = self.random.randint(1, 12)
        spanish = "la/ una/{}" if hour == 1 else f"las/ {lexicon.ONES_ES[hour]}/{{}}"
        if self.random.random() < 0.6:
            german = "ein" if hour == 1 else lexicon.ONES_DE[hour]
            return phrase(f"at {lexicon.ONES_EN[hour]} o'clock", f"um/0 {german}/1 Uhr/2", f"a/0 {spanish.format(1)}")
        return phrase(
            f"at half past {lexicon.ONES_EN[hour]}",
            f"um/0 halb/1 {lexicon.ONES_DE[hour % 12 + 1]}/3",
            f"a/0 {spanish.format(3)} y/2 media/1",
        )

    def statement(self) -> Phrase:
        """Returns subject, verb, object, mostly with a time."""
        subject, verb, thing = self.subject()[0], self.verb(), self.object()
        draw = self.random.random()
        if draw < 0.3:
            return wrap(join(subject, verb, thing), "", ".")
        if draw < 0.65:
            return wrap(join(self.time(), subject, verb, thing, de=(0, 2, 1, 3)), "", ".")
        return wrap(join(subject, verb, thing, self.time(), de=(0, 1, 3, 2)), "", ".")

    def number(self) -> Phrase:
        """Returns a sentence about a number: a count, an age or a room."""
        subject, _ = self.subject()
        draw = self.random.random()
        if draw < 0.5:
            verb = self.verb() if self.random.random() < 0.6 else phrase("has", "hat/0", "tiene/0")
            return wrap(join(subject, verb, self.counted()), "", ".")
        if draw < 0.75:
            age = number_phrase(self.random.randint(2, 99), "m")
            old = phrase("years old", "Jahre/0 alt/1", "años/0")
            return wrap(join(subject, phrase("is", "ist/0", "tiene/0"), age, old), "", ".")
        waits = phrase("waits in room", "wartet/0 in/1 Zimmer/2", "espera/0 en/1 la/ habitación/2")
        return wrap(join(subject, waits, number_phrase(self.random.randint(0, 99))), "", ".")

    def verb_final(self) -> Phrase:
        """Returns a sentence whose German verb is at the end of its clause."""
        (subject, gender), draw = self.subject(), self.random.random()
        if draw < 0.5:
            thing = self.counted() if self.random.random() < 0.2 else self.object()
            matrix = phrase(*self.random.choice(lexicon.MATRIX))
            return wrap(join(matrix, subject, self.verb(), thing, de=(0, 1, 3, 2)), "", ".")
        if draw < 0.65:
            mood = self.random.choice(lexicon.MOODS)
            feels = phrase(f"is {mood[0]}", f"ist/0 {mood[1]},/1", f"está/0 {mood[2 if gender == 'm' else 3]}/1")
            because = phrase("because", "weil/0", "porque/0")
            parts = (subject, feels, because, self.subject()[0], self.verb(), self.object())
            return wrap(join(*parts, de=(0, 1, 2, 3, 5, 4)), "", ".")
        if draw < 0.82:
            modal = phrase(*self.random.choice(lexicon.MODALS))
            return wrap(join(subject, modal, self.verb("infinitive"), self.object(), de=(0, 1, 3, 2)), "", ".")
        perfect = phrase("has", "hat/0", "ha/0")
        return wrap(join(subject, perfect, self.verb("participle"), self.object(), de=(0, 1, 3, 2)), "", ".")

    def question(self) -> Phrase:
        """Returns a question that opens with its question word."""
        draw = self.random.random()
        subject, _ = self.subject()
        forms = self.random.choice(lexicon.VERBS)
        bare = phrase(f"{forms[1]}", f"{forms[3]}/0", f"{forms[6]}/0")
        does = phrase("does", "", "")
        if draw < 0.25:
            what = phrase("What", "Was/0", "¿Qué/0")
            return wrap(join(what, does, subject, bare, de=(0, 3, 2), es=(0, 3, 2)), "", "?")
        if draw < 0.5:
            who = phrase("Who", "Wer/0", "¿Quién/0")
            return wrap(join(who, self.verb(), self.object()), "", "?")
        if draw < 0.7:
            noun = self.random.choice(lexicon.NOUNS)
            many = "Cuántos" if noun[5] == "m" else "Cuántas"
            how = phrase(f"How many {noun[1]}", f"Wie/0 viele/1 {noun[4]}/2", f"¿{many}/0+1 {noun[7]}/2")
            verb = phrase("have", "hat/0", "tiene/0") if self.random.random() < 0.5 else bare
            return wrap(join(how, does, subject, verb, de=(0, 3, 2), es=(0, 3, 2)), "", "?")
        word = phrase(*self.random.choice(lexicon.QUESTION_WORDS))
        return wrap(join(word, does, subject, bare, self.object(), de=(0, 3, 2, 4), es=(0, 3, 2, 4)), "", "?")

    def parenthesis(self) -> Phrase:
        """Returns a statement with an aside in parentheses."""
        if self.random.random() < 0.7:
            name, gender = self.random.choice(lexicon.NAMES)
            kin, german, spanish = self.random.choice(lexicon.KIN[gender])
            mine = "meine" if gender == "f" else "mein"
            aside = wrap(phrase(f"my {kin}", f"{mine}/0 {german}/1", f"mi/0 {spanish}/1"), "(", ")")
            subject = phrase(name, f"{name}/0", f"{name}/0")
            return wrap(join(subject, aside, self.verb(), self.object()), "", ".")
        also = wrap(join(phrase("and", "und/0", "y/0"), self.object()), "(", ")")
        return wrap(join(self.subject()[0], self.verb(), self.object(), also), "", ".")

    def sentence(self) -> Sentence:
        """Returns a sentence of a random kind."""
        kind = self.random.choices(KINDS, weights=(25, 20, 30, 14, 11))[0]
        draw = getattr(self, kind.replace("-", "_"))()
        draw = _edit(draw, _capital, lambda word: word)
        return Sentence(draw.source, draw.target, kind)


class SpeakerGrammar(Grammar):
    """Also draws sentences whose Spanish adjective agrees with the speaker, or with somebody named.

    "I am tired." is "Estoy cansada." in a female voice, "Estoy cansado." in a male one. Words that reveal the speaker's
    gender always agree with the voice; in the third person, the voice reveals nothing.
    """

    def being(self, gender: str, closing: str = "") -> tuple[Phrase, Phrase, Phrase]:
        """Returns "I", "am" and an adjective that agrees with `gender`, with `closing` attached to the German one."""
        english, german, masculine, feminine = self.random.choice(lexicon.SPEAKER_MOODS)
        agreed = feminine if gender == "f" else masculine
        mood = phrase(english, f"{german}{closing}/0", f"{agreed}/0")
        return phrase("I", "ich/0", ""), phrase("am", "bin/0", "estoy/0"), mood

    def clause(self) -> tuple[Phrase, Phrase, Phrase]:
        """Returns subject, verb and object."""
        return self.subject()[0], self.verb(), self.object()

    def relative(self, gender: str) -> Phrase:
        """Returns somebody by their relation to a name, e.g. "the mother of Anna"."""
        english, german, spanish = self.random.choice(lexicon.KIN[gender])
        name = self.random.choice(lexicon.NAMES)[0]
        articles = ("die", "la") if gender == "f" else ("der", "el")
        return phrase(
            f"the {english} of {name}",
            f"{articles[0]}/0 {german}/1 von/2 {name}/3",
            f"{articles[1]}/0 {spanish}/1 de/2 {name}/3",
        )

    def cue(self, gender: str) -> Phrase:
        """Returns who the speaker is, e.g. "a woman" or "the mother of Anna"."""
        if self.random.random() < 0.6:
            return self.relative(gender)
        english, german, spanish = self.random.choice(lexicon.PERSONS[gender])
        article, noun = german.split()
        es_article, es_noun = spanish.split()
        return phrase(f"a {english}", f"{article}/0 {noun}/1", f"{es_article}/0 {es_noun}/1")

    def speaker(self, gender: str) -> Phrase:
        """Returns a sentence of a speaker about their mood in which no word reveals their gender."""
        draw = self.random.random()
        if draw < 0.25:
            i, am, mood = self.being(gender, ",")
            parts = (i, am, mood, phrase("because", "weil/0", "porque/0"), *self.clause())
            return wrap(join(*parts, de=(0, 1, 2, 3, 4, 6, 5)), "", ".")
        i, am, mood = self.being(gender)
        if draw < 0.4:
            return wrap(join(self.time(), i, am, mood, de=(0, 2, 1, 3)), "", ".")
        if draw < 0.6:
            says = phrase("says that", "sagt,/0 dass/1", "dice/0 que/1")
            return wrap(join(self.subject()[0], says, i, am, mood, de=(0, 1, 2, 4, 3)), "", ".")
        also = phrase("and", "und/0", "y/0")
        if draw < 0.8:
            return wrap(join(*self.clause(), also, i, am, mood), "", ".")
        return wrap(join(i, am, mood, also, *self.clause()), "", ".")

    def speaker_cue(self, gender: str) -> Phrase:
        """Returns a sentence of a speaker about their mood; a noun before or after it reveals their gender."""
        draw = self.random.random()
        named = phrase("I am", "ich/0 bin/1", "soy/1")
        if draw < 0.35:
            also = phrase("and", "und/0", "y/0")
            return wrap(join(named, self.cue(gender), also, *self.being(gender)), "", ".")
        if draw < 0.55:
            noun, german, spanish = self.random.choice(
                [*lexicon.KIN[gender], *((e, g.split()[1], s.split()[1]) for e, g, s in lexicon.PERSONS[gender])]
            )
            article = "an" if noun[0] in "aeiou" else "a"
            opening = phrase(f"As {article} {noun}", f"als/0 {german}/2", f"como/0 {spanish}/2")
            return wrap(join(opening, *self.being(gender), de=(0, 2, 1, 3)), "", ".")
        i, am, mood = self.being(gender, ",")
        because = phrase("because", "weil/0", "porque/0")
        parts = (i, am, mood, because, phrase("I", "ich/0", ""), phrase("am", "bin/0", "soy/0"), self.cue(gender))
        return wrap(join(*parts, de=(0, 1, 2, 3, 4, 6, 5)), "", ".")

    def third_person(self, gender: str) -> Phrase:
        """Returns a sentence about somebody's mood; a pronoun, which Spanish drops, or a noun reveals the gender."""
        draw = self.random.random()
        english, german, masculine, feminine = self.random.choice(lexicon.SPEAKER_MOODS)
        agreed = feminine if gender == "f" else masculine
        pronoun, german_pronoun = lexicon.PRONOUNS[gender]
        they, is_ = phrase(pronoun, f"{german_pronoun}/0", ""), phrase("is", "ist/0", "está/0")
        if draw < 0.45:
            says = phrase("says that", "sagt,/0 dass/1", "dice/0 que/1")
            mood = phrase(english, f"{german}/0", f"{agreed}/0")
            return wrap(join(self.subject()[0], says, they, is_, mood, de=(0, 1, 2, 4, 3)), "", ".")
        if draw < 0.7:
            mood = phrase(english, f"{german},/0", f"{agreed}/0")
            parts = (they, is_, mood, phrase("because", "weil/0", "porque/0"), *self.clause())
            return wrap(join(*parts, de=(0, 1, 2, 3, 4, 6, 5)), "", ".")
        mood = phrase(english, f"{german}/0", f"{agreed}/0")
        return wrap(join(self.relative(gender), is_, mood), "", ".")

    def sentence(self) -> Sentence:
        """Returns a sentence of a random kind: those of the plain grammar in 45 of 100 cases."""
        kind = self.random.choices(("plain", *SPEAKER_KINDS), weights=(45, 25, 15, 15))[0]
        if kind == "plain":
            return super().sentence()
        return self.of_kind(kind, self.random.choice("fm"))

    def of_kind(self, kind: str, gender: str) -> Sentence:
        """Returns a sentence of a kind of `SPEAKER_KINDS` whose adjective has the gender "f" or "m"."""
        draw = _edit(getattr(self, kind.replace("-", "_"))(gender), _capital, lambda word: word)
        return Sentence(draw.source, draw.target, kind, None if kind == "third-person" else gender)


def generate_sentences(
    count: int, seed: int, exclude: Iterable[str] = (), speaker_gender: bool = False
) -> list[Sentence]:
    """Returns `count` different sentences whose English texts are not in `exclude`.

    Args:
        count: Number of sentences.
        seed: Same seed, same sentences.
        exclude: English texts to avoid.
        speaker_gender: Also draw sentences whose Spanish adjectives agree with the speaker (`SpeakerGrammar`).
    """
    grammar, seen = (SpeakerGrammar if speaker_gender else Grammar)(seed), set(exclude)
    sentences: list[Sentence] = []
    while len(sentences) < count:
        sentence = grammar.sentence()
        if sentence.text not in seen:
            seen.add(sentence.text)
            sentences.append(sentence)
    return sentences
