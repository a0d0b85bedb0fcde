"""What every record is made of: frozen pydantic models, digests, intervals.

Writing is strict (`Record(...)` refuses unknown fields); reading is lenient
(`Record.decode` keeps unknown fields, so that a newer producer's field survives an older
reader). Every record carries `schema`, "ares.<name>/<major version>": a reader takes any
minor growth and refuses another major version.

Text of conversations lives in Interaction, CoupledFailure and ReviewItem only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ares_stream.errors import DecodeError
from ares_stream.files.rows import parse_json
from ares_stream.files.validation import fault

PartT = TypeVar("PartT", bound="Part")
Identifier = Annotated[str, StringConstraints(min_length=1, max_length=256)]


Slice = Annotated[str, StringConstraints(max_length=128)]
"""A label to slice by. Short, so that a conversation cannot hide in it."""


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


MAX_ATTRIBUTES = 32


_NO_EXTRA: dict[str, Any] = {}

# The slots of every pydantic model: half the time of setting them by name.
_SET_FIELDS, _SET_NAMES, _SET_EXTRA, _SET_PRIVATE = (
    vars(BaseModel)[slot].__set__
    for slot in (
        "__dict__",
        "__pydantic_fields_set__",
        "__pydantic_extra__",
        "__pydantic_private__",
    )
)
_FLAT = frozenset((str, int, float, bool, type(None)))
"""Types of values that hold no other."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime.max.replace(tzinfo=UTC)
"""A later one can be written, with an offset, and not be told in UTC."""
_FIRST = datetime.min.replace(tzinfo=UTC)
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999


def instant(milliseconds: int) -> datetime:
    """Of a time of Kafka, which is any 64 bits that a producer wrote: what lies outside of the
    years 1 to 9999, which no datetime holds, is their first or last moment."""
    return datetime.fromtimestamp(max(_FIRST_MS, min(milliseconds, _LAST_MS)) / 1000, UTC)


def _in_utc(value: datetime) -> datetime:
    if not _FIRST <= value <= LATEST:
        raise refusal("lies outside of the years 1 to 9999 in UTC")
    return value


def refusal(reason: str) -> PydanticCustomError:
    """What a validator raises. A ValueError in its place would be kept by pydantic where no
    garbage collector looks, with its traceback and every object of every caller, for as long as
    a frame of that traceback keeps the validation's error."""
    return PydanticCustomError("refused", reason)


Instant = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A moment with a time zone, which can be told in UTC."""


def _counted_in(bits: int) -> AfterValidator:
    def check(value: int) -> int:
        if not 0 <= value < 1 << bits:
            raise refusal("is out of range")
        return value

    return AfterValidator(check)


Count = Annotated[int, _counted_in(53)]
"""Of verdicts, answers and the like: so many a float still tells apart."""
PartitionNumber = Annotated[int, _counted_in(31)]
Offset = Annotated[int, _counted_in(63)]
"""Not in the schemas, whose bounds must not become narrower: no broker gave another one."""


def _fits_a_float(value: int) -> int:
    if value.bit_length() > 1000:
        raise refusal("is larger than any count or sum")
    return value


Integer = Annotated[int, AfterValidator(_fits_a_float)]
"""A count or an exact sum. JSON has integers that no float holds, on which arithmetic ends."""


class Part(BaseModel):
    """A frozen piece of a record."""

    model_config = ConfigDict(
        frozen=True, extra="allow", populate_by_name=True, serialize_by_alias=True
    )

    def __init__(self, **fields: Any) -> None:
        # Construction forbids what reading allows: pydantic's own __init__ has one rule for both.
        self.__pydantic_validator__.validate_python(fields, self_instance=self, extra="forbid")

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """Of values that were checked when they were made: nothing is looked at again. A field
        that is left out gets its default; aliases and unknown fields are not for here."""
        defaults, required, names = _fields(cls)
        if len(fields) < len(names) and not required <= fields.keys():
            raise TypeError(f"{cls.__name__}: needs {sorted(required - fields.keys())}")
        self = cls.__new__(cls)
        # Frozen as it is, it shares with others of its class what they all have.
        _SET_FIELDS(self, defaults | fields)
        _SET_NAMES(self, names)
        _SET_EXTRA(self, _NO_EXTRA)
        _SET_PRIVATE(self, None)
        return self

    # As pydantic's RootModel does: nested parts that are read do not pass through __init__.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def declared(part: PartT) -> PartT:
    """The part without the unknown fields that reading kept: what a producer added to its record
    may hold text, and goes no further."""
    known = part.__dict__
    if not part.__pydantic_extra__ and _FLAT.issuperset(map(type, known.values())):
        return part
    fields = {name: _declared(value) for name, value in known.items()}
    if not part.__pydantic_extra__ and all(fields[name] is known[name] for name in known):
        return part
    return cast(PartT, type(part).model_construct(**fields))


def _declared(value: Any) -> Any:
    if isinstance(value, Part):
        return declared(value)
    if isinstance(value, tuple):
        items = tuple(_declared(item) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value


@cache
def _fields(part: type[Part]) -> tuple[dict[str, Any], frozenset[str], set[str]]:
    """All fields in their order, which is that of the JSON, with their defaults; those that have
    none, or one that is made anew for each object; and the names of all."""
    required = frozenset(
        name
        for name, field in part.model_fields.items()
        if field.is_required() or field.default_factory is not None
    )
    defaults = {name: field.default for name, field in part.model_fields.items()}
    return defaults, required, set(defaults)


class Record(Part):
    """A frozen record of one topic."""

    SCHEMA: ClassVar[str]

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Parse JSON bytes; unknown fields are kept.

        Raises DecodeError that names the field and never quotes a value.
        """
        try:
            # What `model_validate_json` calls.
            found: Self = cls.__pydantic_validator__.validate_json(raw)
            return found
        except ValidationError as error:
            wrong = decode_error(error, cls)
        # Outside the block: an error raised inside would keep the first as its context, and with
        # it every frame that the record passed through.
        raise wrong

    def encode(self) -> bytes:
        """Compact JSON, UTF-8. Equal records give equal bytes."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True, exclude_none=True)


RecordT = TypeVar("RecordT", bound=Record)
_SCHEMA_FIRST = re.compile(rb'\s*\{\s*"schema"\s*:\s*"([^"\\]*)"')


def decode_one_of(raw: bytes | None, kinds: Iterable[type[RecordT]]) -> RecordT:
    """A record of a topic that holds several kinds, by the schema that it names. Raises
    DecodeError, also for a kind that is none of these."""
    raw = raw or b""
    by_schema = {kind.SCHEMA: kind for kind in kinds}
    # Ours begin so. Elsewhere in a text the name of a schema says nothing.
    first = _SCHEMA_FIRST.match(raw)
    named: object = first[1].decode(errors="replace") if first else parse_json(raw)
    if isinstance(named, dict):
        named = named.get("schema")
    kind = by_schema.get(named) if isinstance(named, str) else None
    if kind is None:
        raise DecodeError(f"expected {' or '.join(by_schema)}", field="schema")
    return kind.decode(raw)


def decode_error(error: ValidationError, form: object = None) -> DecodeError:
    """Say what is wrong with a record without quoting it."""
    wrong = fault(error, form)
    more = f" (and {wrong.more} more)" if wrong.more else ""
    return DecodeError(wrong.reason + more, field=wrong.field)


class OffsetRange(Part):
    """Offsets start (inclusive) to end (exclusive) of one partition."""

    topic: Identifier
    partition: PartitionNumber = Field(ge=0)
    start: Offset = Field(ge=0)
    end: Offset = Field(ge=0)


class Interval(Part):
    """A figure with its 95 % interval; `count` is the number of trials behind it."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    count: Count = Field(ge=0)


def canonical_json(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """JSON with sorted keys and no spaces: the form that digests are taken of."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def stable_seed(*parts: object) -> int:
    """A seed from names, the same on every machine; below 2^31, as endpoints want it."""
    raw = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(raw[:4], "big") >> 1


def digest(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()
