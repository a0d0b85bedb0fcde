"""Conversations unlike those that a judge was trained on: other languages, encodings, noise."""

from __future__ import annotations

import base64
import codecs
import random
from collections.abc import Sequence
from typing import Final

from ares_stream.records.interaction import Interaction

LANGUAGES: Final[dict[str, tuple[str, ...]]] = {
    "German": (
        "Am Morgen gehe ich gern auf den Markt und kaufe frisches Brot.",
        "Die Suppe muss eine halbe Stunde kochen, danach kommt das Salz dazu.",
        "Wenn es regnet, bleiben wir zu Hause und lesen ein Buch.",
        "Der Zug nach Hamburg fährt heute zehn Minuten später ab.",
        "Bitte prüfen Sie zuerst, ob der Stecker richtig in der Dose sitzt.",
        "Meine Schwester hat drei Jahre in einer kleinen Stadt am Meer gewohnt.",
    ),
    "French": (
        "Le matin, nous allons au marché pour acheter du pain et des fruits.",
        "Il faut laisser reposer la pâte pendant une heure avant de la cuire.",
        "Quand il pleut, les enfants restent à la maison et jouent aux cartes.",
        "Le train de Lyon part aujourd'hui avec dix minutes de retard.",
        "Vérifiez d'abord que l'appareil est bien branché.",
        "Ma sœur a vécu trois ans dans une petite ville près de la mer.",
    ),
    "Spanish": (
        "Por la mañana vamos al mercado a comprar pan y fruta.",
        "La masa tiene que descansar una hora antes de entrar en el horno.",
        "Cuando llueve nos quedamos en casa y leemos un libro.",
        "El tren de Sevilla sale hoy con diez minutos de retraso.",
        "Compruebe primero que el enchufe está bien conectado.",
        "Mi hermana vivió tres años en un pueblo pequeño cerca del mar.",
    ),
    "Finnish": (
        "Aamulla käymme torilla ostamassa leipää ja marjoja.",
        "Taikinan pitää levätä tunti ennen kuin se pannaan uuniin.",
        "Kun sataa, jäämme kotiin ja luemme kirjaa.",
        "Tampereen juna lähtee tänään kymmenen minuuttia myöhässä.",
        "Tarkista ensin, että pistoke on kunnolla pistorasiassa.",
        "Siskoni asui kolme vuotta pienessä kaupungissa meren rannalla.",
    ),
    "Russian": (
        "Утром мы ходим на рынок за хлебом и фруктами.",
        "Тесто должно постоять час, прежде чем его поставят в печь.",
        "Когда идёт дождь, мы сидим дома и читаем книгу.",
        "Поезд в Казань сегодня отправляется на десять минут позже.",
        "Сначала проверьте, что вилка до конца вставлена в розетку.",
        "Моя сестра три года жила в маленьком городе у моря.",
    ),
    "Chinese": (
        "早上我们去市场买面包和水果。",
        "面团要先放一个小时，然后才能烤。",
        "下雨的时候，我们待在家里看书。",
        "去上海的火车今天晚开十分钟。",
        "请先检查插头有没有插好。",
        "我姐姐在海边的小城住了三年。",
    ),
}
ALIKE: Final = ("German", "French", "Spanish", "Finnish")
"""Those in the letters of English: no script tells them."""


def foreign_answers(
    usual: Sequence[Interaction], count: int, *, seed: int
) -> dict[str, list[Interaction]]:
    """`count` conversations of each kind: the prompts of usual ones with other answers, of as many
    words as theirs where there are so many."""
    draw = random.Random(seed)
    chosen = [usual[place] for place in draw.sample(range(len(usual)), min(count, len(usual)))]
    words = [word for item in usual for word in item.response.split()]
    found: dict[str, list[Interaction]] = {}

    def add(kind: str, item: Interaction, answer: str) -> None:
        found.setdefault(kind, []).append(item.model_copy(update={"response": answer}))

    for item in chosen:
        size = max(5, len(item.response.split()))
        for language, sentences in LANGUAGES.items():
            parts = draw.choices(sentences, k=max(1, min(12, size // 10)))
            add("same letters" if language in ALIKE else "other script", item, " ".join(parts))
        add("base64", item, base64.b64encode(item.response.encode()).decode())
        add("hexadecimal", item, item.response.encode().hex())
        add("rot13", item, codecs.encode(item.response, "rot13"))
        add("random words", item, " ".join(draw.choices(words, k=size)))
        letters = draw.choices("abcdefghijklmnopqrstuvwxyz      ", k=5 * size)
        add("random letters", item, "".join(letters))
    return found
