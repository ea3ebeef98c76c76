"""Tier 2: names, places and other things without a form, found by Presidio with a spaCy model (extra `presidio`).

It runs in a thread, one call's texts at a time, and takes milliseconds a text, so it is asked for by `pii.presidio` only. Nothing
is downloaded: the model is one that is installed, or a folder. What it finds in one text of a call is forbidden in every text of
that call.
Source: https://microsoft.github.io/presidio/analyzer/
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from governance.guardrails.judges import GuardrailError
from governance.guardrails.pii import Finding, distinct
from governance.guardrails.rules import Rules

if TYPE_CHECKING:
    from governance.policies import PresidioOptions

_LONGEST = 100_000  # characters of a text that are looked at together
_OVERLAP = 200


class Presidio:
    """Looks for what the options name. Raises `GuardrailError` where it, or the model, is not installed."""

    def __init__(self, options: PresidioOptions) -> None:
        self._options = options
        self._analyzer = _analyzer(options.model, options.language)
        known = set(self._analyzer.get_supported_entities(options.language))
        if unknown := set(options.entities) - known:
            there = ", ".join(sorted(known))
            raise GuardrailError(f"pii.presidio.entities: {', '.join(sorted(unknown))} cannot be found; known: {there}")
        self._work: Future[Mapping[str, str]] | None = None

    async def learn(self, texts: Sequence[str]) -> Mapping[str, str]:
        """What is forbidden, word for word, and its kind."""
        while self._work is not None and not self._work.done():  # one that hangs keeps the others waiting as long as they will
            await asyncio.wait([asyncio.wrap_future(self._work)])
        self._work = work = Future[Mapping[str, str]]()
        work.set_running_or_notify_cancel()  # it goes on to its end, whoever leaves
        given = sorted({text for text in texts if not text.isspace()})
        threading.Thread(target=self._look, args=(work, given), daemon=True).start()  # a thread that hangs holds up no exit
        return await asyncio.wrap_future(work)

    def _look(self, work: Future[Mapping[str, str]], texts: Sequence[str]) -> None:
        try:
            work.set_result(self._learn(texts))
        except BaseException as error:
            work.set_exception(error)

    def _learn(self, texts: Sequence[str]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        options = self._options
        for text in texts:
            for start in range(0, max(1, len(text)), _LONGEST - _OVERLAP):
                piece = text[start : start + _LONGEST]
                results = self._analyzer.analyze(
                    text=piece, language=options.language, entities=list(options.entities), score_threshold=options.score
                )
                for each in results:
                    word = piece[each.start : each.end].strip()
                    if len(word) > 1:
                        found[word] = each.entity_type
        return found


class Learned(Rules):
    """Rules with what was found besides. It holds a text until all of it has come: what goes before may belong to a name."""

    def __init__(self, rules: Rules, behavior: str, words: Mapping[str, str]) -> None:
        self._rules, self._kinds, self.pii = rules, {" ".join(word.split()): kind for word, kind in words.items()}, behavior
        longest_first = sorted(self._kinds, key=len, reverse=True)
        spelled = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{spelled})(?!\w)") if spelled else None
        self.any, self.keywords = True, rules.keywords

    def words(self, text: str) -> list[Finding]:
        return self._rules.words(text)

    def find(self, text: str) -> list[Finding]:
        found = self._rules.find(text)
        if self._pattern is not None:
            words = self._pattern.finditer(text)
            found = [*found, *(Finding(m.start(), m.end(), self._kinds[" ".join(m[0].split())]) for m in words)]
        return distinct(found)

    def open_from(self, text: str) -> int:
        return 0


@lru_cache(maxsize=8)
def _analyzer(model: str | None, language: str) -> Any:
    """Presidio over an installed spaCy model, or a folder of one; without a model over patterns alone."""
    try:
        import spacy  # pyright: ignore[reportMissingImports]
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry  # pyright: ignore[reportMissingImports]
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise GuardrailError("pii.presidio needs Presidio: pip install 'smalti[presidio]'") from None
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # it warns of every language that was not asked for
    engine = SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": model or "blank"}],
        ner_model_configuration=NerModelConfiguration(low_score_entity_names=[]),
    )
    try:
        engine.nlp = {language: spacy.load(model) if model else spacy.blank(language)}
    except (OSError, ImportError, ValueError):
        raise GuardrailError(
            f"pii.presidio: the spaCy model {model!r} for {language!r} is neither installed nor a folder; "
            f"get one by `python -m spacy download {model or 'en_core_web_sm'}`, or name the folder of one"
        ) from None
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=engine)
    for asks_the_network in ("EmailRecognizer", "UrlRecognizer"):  # for a list of domains; tier 1 finds addresses
        registry.remove_recognizer(asks_the_network)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
