"""Conversations that a model is tried on where nobody gave any: plain English of several shapes."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from ares_stream.records.interaction import Interaction, Message, Policy, Role

_LONG: Final = (
    "Add the flour slowly, stir until no lumps are left, and let the dough rest for an hour. "
)
_TALKS: Final[tuple[tuple[tuple[tuple[Role, str], ...], str], ...]] = (
    ((("user", "What is the capital of Australia?"),), "Canberra."),
    (
        (("user", "Please explain in two sentences how a bicycle stays upright."),),
        "A rider steers into a fall, and the wheels come back under the weight.\nAt speed the "
        "front wheel does much of this by itself.",
    ),
    (
        (
            ("system", "You are a patient teacher. Answer briefly."),
            ("user", "Why is the sky blue?"),
        ),
        "Air scatters short wavelengths more than long ones.",
    ),
    (
        (
            ("user", "Give me a name for a boat."),
            ("assistant", "Morning Star."),
            ("user", "Another one, and say why; it's 9 m long & red."),
        ),
        '  "Poppy": it\'s short, red, and easy to call over the radio.  ',
    ),
    ((("user", "How do I bake bread? " + _LONG * 6),), _LONG * 40),
    ((("user", "Write one line of Python."),), "print(sum(x ** 2 for x in range(10)))  # 285"),
)


def sample_conversations(at: datetime) -> list[Interaction]:
    """One turn, several turns, a system prompt, a long answer, code; held at this time."""
    return [
        Interaction(
            id=f"sample-{place}",
            occurred_at=at,
            messages=tuple(Message(role=role, content=content) for role, content in talk),
            response=response,
            policy=Policy(name="sample", version="1"),
        )
        for place, (talk, response) in enumerate(_TALKS)
    ]
