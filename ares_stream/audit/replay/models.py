"""The models and the policy that a verdict was made with, found by the digests that it names."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import BundleError, DecodeError, RegistryError, ScoringError, SettingsError
from ares_stream.models.bundles import Bundle, load_bundle
from ares_stream.models.signing import signed_by
from ares_stream.models.store import ReleaseStore
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.handler import Scorer
from ares_stream.scoring.judges import ConstitutionJudge, Judge, PhraseJudge
from ares_stream.scoring.panel import Panel, Scores, ScoringConfig

OPEN: Final = 4
"""Panels in memory at once: of the releases that a range takes in a row, more come seldom."""
_MADE_WITH: Final = re.compile(
    rb'"releases":(\{[^{}]*\}),"detection_policy":"([0-9a-f]{64})"[,}]'
)  # fmt: skip
ASKED: Final = ConstitutionJudge.name
"""The judge whose opinions are taken from the verdicts: nobody can ask it again."""

Named = tuple[str, str]
"""A model's name and digest."""
Opened = tuple[str, str, str, str]
"""Kind, name and digest of a model, and the number type of what its session gives."""


@dataclass(frozen=True, slots=True)
class MadeWith:
    """What a verdict was made with: judges in the panel's order, without the one whose opinions
    are recorded; its digest, where it gave one, is `asked`."""

    judges: tuple[Named, ...]
    reward: Named
    policy: str
    asked: str | None = None

    @property
    def models(self) -> tuple[tuple[Named, ...], Named]:
        """What a panel is opened for."""
        return self.judges, self.reward


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What stands in the place of what verdicts were made with; None leaves it as it was."""

    judges: tuple[Named, ...] | None = None
    reward: Named | None = None
    policy: DetectionPolicy | None = None

    @property
    def scores(self) -> bool:
        """Whether models are asked; else the recorded scores are decided on anew."""
        return self.judges is not None or self.reward is not None

    def instead_of(self, made: MadeWith | None) -> MadeWith | None:
        """The models and the policy to score with; None where nothing says some of them."""
        if made is None:
            if self.judges is None or self.reward is None or self.policy is None:
                return None
            return MadeWith(self.judges, self.reward, self.policy.digest)
        return replace(
            made,
            judges=self.judges or made.judges,
            reward=self.reward or made.reward,
            policy=made.policy if self.policy is None else self.policy.digest,
            # An opinion on what other judges doubted says nothing beside these.
            asked=made.asked if self.judges is None else None,
        )


class Readings:
    """Reads what verdicts were made with; equal ones are decoded once."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], MadeWith] = {}
        self._last: tuple[bytes, MadeWith] | None = None

    def of(self, value: bytes) -> MadeWith:
        """From a verdict's value. Raises DecodeError."""
        if self._last is not None and value.endswith(self._last[0]):
            return self._last[1]
        found = _MADE_WITH.search(value)
        if found is None:
            return made_with(Verdict.decode(value))
        key = found[1], found[2]
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = made_with(Verdict.decode(value))
        self._last = value[found.start() :], known
        return known


def made_with(verdict: Verdict) -> MadeWith:
    """The models and the policy of a verdict. Raises DecodeError where it names no one reward
    model beside its judges."""
    releases = dict(verdict.releases)
    asked = releases.pop(ASKED, None)
    judges = [name for name in verdict.harm.judges if name != ASKED]
    try:
        named = tuple((name, releases.pop(name)) for name in judges)
        ((reward, digest),) = releases.items()
    except (KeyError, ValueError):
        raise DecodeError(
            "names other models than judges and one reward", field="releases"
        ) from None
    return MadeWith(named, (reward, digest), verdict.detection_policy, asked)


def recorded_opinion(value: bytes) -> float | None:
    """What the judge said that nobody can ask again; nothing in what is no verdict, though it ends
    as one does."""
    try:
        return Verdict.decode(value).harm.judges.get(ASKED)
    except DecodeError:
        return None


class RecordedJudge:
    """Says again what a verdict recorded of it: such records are scored one at a time."""

    name = ASKED
    doubt = (0.0, 1.0)

    def __init__(self) -> None:
        self.digest = ""
        self._opinion: float | None = None

    def expect(self, digest: str | None, opinion: float | None) -> None:
        """What it says of the next window; None says nothing."""
        self.digest, self._opinion = digest or "", opinion

    async def probabilities(self, interactions: Sequence[Interaction]) -> list[float | None]:
        """The same of all."""
        return [self._opinion] * len(interactions)

    async def aclose(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Where models and policies are found. `bundles` and `policies` are looked at first; then the
    registry at `registry`, whose files are fetched to `cache`."""

    policies: tuple[DetectionPolicy, ...]
    bundles: tuple[str, ...] = ()
    registry: str | None = None
    cache: str = "releases"
    public_key: str | None = None
    phrases: PhraseJudge | None = None
    config: ScoringConfig = field(default_factory=ScoringConfig)


class Models:
    """Opens panels by digest and keeps the latest."""

    def __init__(
        self, resources: Resources, null: Callable[[MadeWith], Scorer] | None = None
    ) -> None:
        """`null` stands in for panels: models that compute nothing, for a measurement."""
        self._resources = resources
        self._null = null
        self._signed = signed_by(
            None if resources.public_key is None else Path(resources.public_key)
        )
        self._policies = {item.digest: item for item in resources.policies}
        self._bundles: dict[str, Bundle] | None = None
        self._panels: OrderedDict[object, tuple[Scorer, RecordedJudge]] = OrderedDict()
        self.opened: set[Opened] = set()
        """Every model that was opened."""

    def policy(self, digest: str) -> DetectionPolicy:
        """The policy of a digest. Raises SettingsError."""
        try:
            return self._policies[digest]
        except KeyError:
            known = ", ".join(sorted(item[:12] for item in self._policies))
            raise SettingsError(
                f"no detection policy {digest[:12]} among {known}; name its file with --policy-file"
            ) from None

    async def scorer(self, made: MadeWith) -> tuple[Scorer, RecordedJudge]:
        """A panel of exactly these models. Raises BundleError, IntegrityError, RegistryError."""
        if made.models in self._panels:
            self._panels.move_to_end(made.models)
            return self._panels[made.models]
        judge = RecordedJudge()
        if self._null is not None:
            opened: tuple[Scorer, RecordedJudge] = (self._null(made), judge)
        else:
            opened = (self._open(made, judge), judge)
        self._panels[made.models] = opened
        while len(self._panels) > OPEN:
            _, (old, _) = self._panels.popitem(last=False)
            if isinstance(old, Panel):
                await old.aclose()
        return opened

    def _open(self, made: MadeWith, recorded: RecordedJudge) -> Panel:
        harm: list[Bundle] = []
        others: list[Judge] = []
        for name, digest in made.judges:
            if name == PhraseJudge.name:
                others.append(self._phrases(digest))
            else:
                harm.append(self.bundle("harm", name, digest))
        reward = self.bundle("reward", *made.reward)
        panel = Panel.open(harm, reward, self._resources.config, others=[*others, recorded])
        for bundle in (*harm, reward):
            kind, name = bundle.manifest.kind, bundle.manifest.name
            self.opened.add((kind, name, bundle.digest, panel.dtypes[name]))
        return panel

    def _phrases(self, digest: str) -> PhraseJudge:
        phrases = self._resources.phrases
        if phrases is None or phrases.digest != digest:
            raise BundleError(
                f"no phrases {digest[:12]}; name the file that was in use then in scorer.phrases"
            )
        return phrases

    def bundle(self, kind: str, name: str, digest: str) -> Bundle:
        """The bundle of a digest. Raises BundleError where nobody has it."""
        if self._bundles is None:
            known = (
                load_bundle(Path(path), None, self._signed) for path in self._resources.bundles
            )
            self._bundles = {item.digest: item for item in known}
        found = self._bundles.get(digest)
        if found is None:
            found = self._bundles[digest] = self._fetched(kind, name, digest)
        if (found.manifest.kind, found.manifest.name) != (kind, name):
            raise BundleError(
                f"{found.path}: is {found.manifest.kind} {found.manifest.name}, the verdicts name "
                f"it as {kind} {name}"
            )
        return found

    def _fetched(self, kind: str, name: str, digest: str) -> Bundle:
        root = self._resources.registry
        release = None
        if root is not None:
            store = ReleaseStore(root)
            release = store.log().find(name, digest)
        if root is None or release is None:
            raise BundleError(
                f"no bundle of {kind} {name} {digest[:12]}: neither in the registry {root} nor "
                "named with --bundle"
            )
        if release.kind == "policy":
            raise RegistryError(
                f"{name} {digest[:12]}: is a policy, the verdicts name it as {kind}"
            )
        path = store.fetch(release, Path(self._resources.cache))
        return load_bundle(path, release.kind, self._signed)

    async def aclose(self) -> None:
        """Close every panel."""
        for scorer, _ in self._panels.values():
            if isinstance(scorer, Panel):
                await scorer.aclose()
        self._panels.clear()


class NoModels:
    """Stands for the models of a block in which no verdict says which they were."""

    def __init__(self, block: str) -> None:
        self._block = block

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        """Raises BundleError."""
        raise BundleError(
            f"{self._block}: no verdict there says which models were in use; name them in "
            "scorer.harm and scorer.reward"
        )
