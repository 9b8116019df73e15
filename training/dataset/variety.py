"""How varied a set of one character is, by what its captions say of pose, angle, framing and face.

The words are common booru tags and plain English; a phrase counts wherever it stands in a caption,
as a tag or in a sentence, with spaces or underscores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

ONE_SIDED = 0.8
"""A group is one-sided when one of its kinds has at least this share of what is named."""

ENOUGH = 5
"""Pictures; fewer say nothing about a group."""

VOCABULARY: dict[str, dict[str, str]] = {
    "pose": {
        "standing": "standing, stands, stand, contrapposto, standing on one leg, upright",
        "sitting": "sitting, sits, seated, seiza, wariza, indian style, cross-legged, yokozuwari, "
        "crossed legs, straddling, riding",
        "lying": "lying, lies down, lying down, on back, on stomach, on side, reclining, sleeping, "
        "fetal position",
        "kneeling": "kneeling, kneels, on one knee, all fours, crawling",
        "squatting": "squatting, squats, crouching, crouches",
        "walking": "walking, walks, strolling",
        "running": "running, runs, sprinting",
        "jumping": "jumping, jumps, leaping, midair, mid-air, falling",
        "flying": "flying, flies, floating, hovering, swimming",
        "leaning": "leaning, leans, leaning forward, leaning back, bent over",
        "fighting": "fighting stance, fighting, battle stance, attacking, kicking, punching",
        "dancing": "dancing, dances",
        "arms up": "arms up, arm up, raised arms, raised hand, hands up, hand up, waving, waves",
        "arms crossed": "crossed arms, arms crossed, folded arms, arms folded",
        "hands on hips": "hand on hip, hands on hips, hand on own hip, hands on own hips",
    },
    "angle": {
        "front": "from front, front view, facing viewer, facing the viewer, facing the camera, "
        "straight-on, frontal view, looking at viewer, looking at the viewer, "
        "looking at the camera",
        "three-quarter": "three-quarter view, three quarter view, 3/4 view, from the front left, "
        "from the front right",
        "side": "from side, from the side, side view, profile, profile view, sideways",
        "behind": "from behind, back view, rear view, seen from behind, looking back, facing away, "
        "from the back",
        "above": "from above, high angle, bird's-eye view, birds-eye view, top-down view, overhead",
        "below": "from below, low angle, worm's-eye view, worms-eye view",
        "tilted": "dutch angle, tilted camera",
    },
    "framing": {
        "face": "close-up, close up, closeup, face focus, headshot, head shot, extreme close-up",
        "portrait": "portrait, head and shoulders, bust, bust shot",
        "upper body": "upper body, half body, half-body, waist up, from the waist up, medium shot",
        "to the thighs": "cowboy shot, thighs up, knees up, three-quarter length, medium full shot",
        "full body": "full body, full-body, full length, full-length, whole body, head to toe",
        "from afar": "wide shot, long shot, very wide shot, from afar, from a distance, "
        "establishing shot",
        "a part": "lower body, feet out of frame, head out of frame, out of frame, hand focus, "
        "foot focus, back focus",
    },
    "expression": {
        "smile": "smile, smiles, smiling, light smile, closed-mouth smile, grin, grinning, smirk, "
        "happy, joyful, cheerful",
        "laugh": "laughing, laughs, laugh, open-mouth smile",
        "neutral": "expressionless, neutral expression, blank stare, calm, calm expression, "
        "emotionless",
        "serious": "serious, stern, determined, frown, frowning, glaring, focused",
        "angry": "angry, anger, furious, mad, annoyed, clenched teeth, scowl, scowling, v-shaped "
        "eyebrows",
        "sad": "sad, sadness, unhappy, crying, cries, tears, tearful, sobbing, melancholy, gloomy",
        "surprised": "surprised, surprise, shocked, astonished, wide-eyed, gasp",
        "afraid": "scared, afraid, fear, frightened, terrified, worried, nervous",
        "shy": "blush, blushing, shy, embarrassed, flustered",
        "tired": "tired, sleepy, yawning, yawn, half-closed eyes, bored",
        "eyes shut": "closed eyes, eyes closed, wink, winking, one eye closed",
        "mouth open": "open mouth, mouth open, shouting, screaming, tongue out, tongue",
        "disgusted": "disgust, disgusted, pout, pouting, smug, jitome",
    },
}


@dataclass(frozen=True)
class GroupVariety:
    """What the captions say of one group, such as the angle."""

    counts: dict[str, int]
    """Kind -> pictures whose captions name it, most frequent first; only those that are named."""
    named: int
    """Pictures whose captions name any kind."""

    @property
    def evenness(self) -> float:
        """Entropy of the counts over its largest value for as many kinds (Pielou 1966), 0..1;
        0 when only one kind is there."""
        total = sum(self.counts.values())
        if len(self.counts) < 2:
            return 0.0
        shares = [count / total for count in self.counts.values()]
        return -sum(share * math.log(share) for share in shares) / math.log(len(shares))

    @property
    def one_sided(self) -> str:
        """The kind that nearly all pictures show; "" when they vary, or too few say anything."""
        if self.named < ENOUGH:
            return ""
        kind, count = next(iter(self.counts.items()))
        return kind if count >= ONE_SIDED * self.named else ""


def variety(captions: Iterable[str]) -> dict[str, GroupVariety]:
    """Group -> what is said of it.

    Args:
        captions: one text a picture; of several captions, all of them.
    """
    found: dict[str, Counter[str]] = {group: Counter() for group in VOCABULARY}
    named: Counter[str] = Counter()
    for caption in captions:
        kinds = kinds_in(caption)
        for group, kind in kinds:
            found[group][kind] += 1
        named.update({group for group, _ in kinds})
    return {
        group: GroupVariety(dict(counts.most_common()), named[group])
        for group, counts in found.items()
    }


def kinds_in(caption: str) -> set[tuple[str, str]]:
    """(group, kind) of every phrase of the vocabulary in a caption."""
    pattern, meanings = _pattern()
    text = caption.lower().replace("_", " ").replace("’", "'")
    return {meanings[match] for match in pattern.findall(text)}


@lru_cache(maxsize=1)
def _pattern() -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    meanings = {
        phrase: (group, kind)
        for group, kinds in VOCABULARY.items()
        for kind, phrases in kinds.items()
        for phrase in phrases.split(", ")
    }
    words = "|".join(map(re.escape, meanings))
    return re.compile(rf"(?<![\w-])(?:{words})(?![\w-])"), meanings
