"""Seeded generators of text of ten kinds: endless, the same on every machine, in three disjoint splits.

Invented words (names, places, hosts, identifiers, goods) belong to exactly one split, by their hash, and no sentence
goes without one; so no passage of evaluation text occurs in training or calibration text.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

TextSplit = Literal["train", "calibration", "evaluation"]
SPLITS: tuple[TextSplit, ...] = get_args(TextSplit)

SHORT_OF_DISTANCE = 32
"""A recall story that misses the distance by no more than these bytes is passed over for one that needs no padding."""

_ONSETS = (
    "b",
    "br",
    "d",
    "dr",
    "f",
    "g",
    "h",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "io")
_ENDINGS = ("", "n", "r", "l", "s", "th", "m", "nd")


@dataclass(frozen=True)
class GeneratedText:
    """A text of one kind: number `index` of its kind in its split."""

    kind: str
    split: TextSplit
    index: int
    text: str


@dataclass(frozen=True)
class RecallItem:
    """A context that ends right before a name or place that it introduced long before."""

    context: str
    answer: str


def split_of(word: str) -> TextSplit:
    """The one split that an invented word belongs to."""
    number = hashlib.sha256(word.lower().encode()).digest()[0] % 10
    return "calibration" if number == 0 else "evaluation" if number == 1 else "train"


class Words:
    """Random choices, and invented words of one split.

    Parameters
    ----------
    split : str
        The split that invented words must belong to.
    seed : str
        Seed of all choices.
    """

    def __init__(self, split: TextSplit, seed: str) -> None:
        self.split = split
        self.random = Random(seed)

    def invent(self, syllables: int = 2) -> str:
        """A new word of this split, in lower case."""
        while True:
            word = "".join(self.pick(_ONSETS) + self.pick(_VOWELS) for _ in range(syllables)) + self.pick(_ENDINGS)
            if split_of(word) == self.split:
                return word

    def name(self) -> str:
        """A new word of this split, capitalised."""
        return self.invent().capitalize()

    def pick(self, choices: Sequence[str]) -> str:
        """One of several."""
        return choices[self.random.randrange(len(choices))]

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.random.randint(low, high)


def _story(w: Words) -> str:
    hero, friend, place, far, pet = (w.name() for _ in range(5))
    thing = w.pick(("lantern", "silver key", "blue kite", "wooden boat", "old map", "red scarf"))
    trouble = w.pick(("a storm came", "the bridge broke", "the river rose", "the lamps went out", "snow fell"))
    mood = w.pick(("brave", "quiet", "curious", "stubborn", "gentle", "proud"))
    return (
        f"Once there was a {mood} child called {hero} who lived in {place}. "
        f"{hero} had a {thing} and a friend named {friend}. "
        f"One morning {friend} and {hero} left {place} to find {far}, and the dog {pet} ran ahead. "
        f"On the way to {far} {trouble}, and {pet} began to bark. "
        f'"Do not be afraid," said {hero}, "we will go on together, {friend}." '
        f"They waited under a tree until {pet} slept, and {friend} sang a song of {place}. "
        f"When they came to {far} at last, {hero} gave the {thing} to {friend}. "
        f"In the evening {hero} and {friend} went home to {place}, and {pet} was glad.\n"
    )


def _recipe(w: Words) -> str:
    dish, spice, herb = w.name(), w.invent(), w.invent()
    base = w.pick(("rice", "lentils", "potatoes", "barley", "beans", "noodles"))
    lines = [
        f"RECIPE: {dish} {base} with {spice}",
        f"Serves {w.number(2, 8)}. Time for {dish}: {w.number(2, 11) * 5} min.",
    ]
    lines += [f"- {w.number(1, 9) * 50} g {base} ({dish} style)", f"- {w.number(1, 4)} tsp {spice}, ground"]
    lines += [f"- {w.number(1, 6)} leaves of {herb}", f"1. Wash the {base}; toast the {spice}."]
    lines += [f"2. Simmer {base} and {herb} for {w.number(5, 40)} minutes."]
    lines += [f"3. Stir in the {spice}, add {w.pick(('salt', 'butter', 'lemon', 'oil'))}, cover the {dish}."]
    lines += [f"4. Serve {dish} hot, with fresh {herb} on top."]
    return "\n".join(lines) + "\n\n"


def _log(w: Words) -> str:
    host, unit = w.invent(), w.invent()
    day, lines = w.number(1, 28), []
    for _ in range(8):
        stamp = (
            f"2031-{w.number(1, 12):02d}-{day:02d}T{w.number(0, 23):02d}:{w.number(0, 59):02d}:{w.number(0, 59):02d}Z"
        )
        level = w.pick(("INFO", "INFO", "WARN", "ERROR", "DEBUG"))
        event = w.pick(
            (
                f"conn from 10.{w.number(0, 255)}.{w.number(0, 255)}.{w.number(1, 254)} {unit}={w.number(100, 999)}",
                f"req {w.invent()} status={w.pick(('200', '404', '500', '301'))} ms={w.number(1, 900)}",
                f"retry {unit} attempt={w.number(1, 5)} backoff={w.number(1, 64)}s",
                f"cache miss key={unit}:{w.number(1000, 9999)}",
            )
        )
        lines.append(f"{stamp} {level} {host}[{w.number(100, 9999)}]: {event}")
    return "\n".join(lines) + "\n"


def _table(w: Words) -> str:
    town, first, second = w.name(), w.invent(), w.invent()
    lines = [f"| {town} | {first} | {second} | total |", "|---|---|---|---|"]
    for _ in range(7):
        a, b = w.number(1, 99), w.number(1, 99)
        lines.append(f"| {w.name()} | {a} | {b} | {a + b} |")
    return "\n".join(lines) + "\n\n"


def _code(w: Words) -> str:
    function, item, total, limit = (w.invent() for _ in range(4))
    sign = w.pick(("+", "-", "*"))
    return (
        f"def {function}({item}s, {limit}={w.number(2, 90)}):\n"
        f"    {total} = {w.number(0, 9)}\n"
        f"    for {item} in {item}s:\n"
        f"        if {item} {w.pick(('>', '<', '>=', '!='))} {limit}:\n"
        f"            {w.pick(('continue', 'break', f'{limit} += 1'))}\n"
        f"        {total} = {total} {sign} {item}\n"
        f"    return {total}\n\n"
        f"assert {function}([{w.number(1, 9)}, {w.number(1, 9)}]) == {w.number(0, 99)}  # {total}\n\n"
    )


def _dialogue(w: Words) -> str:
    one, other, place = w.name(), w.name(), w.name()
    ware = w.pick(("tickets", "apples", "stamps", "boots", "candles"))
    return (
        f"{one.upper()}: Good day, {other}! How far is {place}?\n"
        f"{other.upper()}: {place}? An hour on foot, {one}, maybe two.\n"
        f"{one.upper()}: Oh no. Do they sell {ware} in {place}?\n"
        f"{other.upper()}: Yes, {one}, but ask for {w.name()} there.\n"
        f"{one.upper()}: Thank you, {other}. Will you come along?\n"
        f"{other.upper()}: Not today! Greet {place} for me, {one}.\n\n"
    )


def _arithmetic(w: Words) -> str:
    owner, goods = w.name(), w.invent() + "s"
    a, b, c = w.number(3, 60), w.number(2, 40), w.number(2, 9)
    return (
        f"Q: {owner} has {a} {goods} and buys {b} more. "
        f"Each of the {goods} costs {c} coins. What does {owner} pay in all?\n"
        f"A: {owner} has {a} + {b} = {a + b} {goods}. "
        f"Since each costs {c}, {owner} pays {a + b} * {c} = {(a + b) * c}. "
        f"So the {goods} cost {(a + b) * c} coins.\n"
    )


def _letter(w: Words) -> str:
    sender, reader, place, aunt = (w.name() for _ in range(4))
    return (
        f"Dear {reader},\n\nthank you for your letter from {place}. "
        f"I hope that {aunt} is well again, and that {place} is warm. "
        f"We have missed you since you left, dear {reader}; "
        f"even {aunt} wrote that {w.pick(('the garden', 'the piano', 'the kitchen', 'the harbour'))} is quiet. "
        f"{reader}, I shall visit {place} in {w.pick(('May', 'June', 'August', 'October'))}. "
        f"Please tell {aunt} to keep a room for {sender}.\n\nYours truly,\n{sender}\n\n"
    )


def _weather(w: Words) -> str:
    coast, hills = w.name(), w.name()
    sky = w.pick(("clear skies", "light rain", "heavy showers", "dense fog", "sleet"))
    return (
        f"FORECAST {coast.upper()} AND {hills.upper()}: {sky} over {coast}, "
        f"wind {w.pick(('N', 'NE', 'E', 'SW', 'W'))} {w.number(5, 90)} km/h. "
        f"High {w.number(-5, 34)} C, low {w.number(-15, 14)} C in {hills}. "
        f"Chance of rain {w.number(0, 10) * 10}% near {coast}; "
        f"pressure {w.number(980, 1040)} hPa, {w.pick(('rising', 'falling', 'steady'))} at {hills}. "
        f"Gale warning for {w.name()}: {w.pick(('none', 'in force', 'lifted'))}.\n"
    )


def _catalogue(w: Words) -> str:
    maker, line = w.name(), w.invent()
    items = []
    for _ in range(4):
        code = f"{line[:3].upper()}-{w.number(100, 999)}"
        items.append(
            f'{{"sku": "{code}", "name": "{w.invent()}", "brand": "{maker}", '
            f'"price": {w.number(1, 400)}.{w.number(0, 99):02d}, "stock": {w.number(0, 60)}, "of": "{line}"}}'
        )
    return "\n".join(items) + "\n"


_GENERATORS: dict[str, Callable[[Words], str]] = {
    "story": _story,
    "recipe": _recipe,
    "log": _log,
    "table": _table,
    "code": _code,
    "dialogue": _dialogue,
    "arithmetic": _arithmetic,
    "letter": _letter,
    "weather": _weather,
    "catalogue": _catalogue,
}
KINDS: tuple[str, ...] = tuple(_GENERATORS)


def document(kind: str, split: TextSplit, index: int, *, min_bytes: int = 900) -> GeneratedText:
    """The document of a kind and split with a given number.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    split : {"train", "calibration", "evaluation"}
        Which stream.
    index : int
        Its number; every number gives another document.
    min_bytes : int
        The text is at least this long; it is whole passages, so a longer one starts with the shorter one.

    Raises
    ------
    ValueError
        If kind or split is unknown.
    """
    if kind not in _GENERATORS:
        raise ValueError(f"unknown kind of text {kind!r}; known: {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    words = Words(split, f"{kind}/{split}/{index}")
    text = ""
    while len(text.encode()) < min_bytes:
        text += _GENERATORS[kind](words)
    return GeneratedText(kind, split, index, text)


def documents(split: TextSplit, *, kinds: Sequence[str] = KINDS, min_bytes: int = 900) -> Iterator[GeneratedText]:
    """Documents of a split without end, the kinds in turn."""
    for index in itertools.count():
        for kind in kinds:
            yield document(kind, split, index, min_bytes=min_bytes)


def recall_items(split: TextSplit, *, distance_bytes: int = 256) -> Iterator[RecallItem]:
    """Stories cut before a place that was last named at least `distance_bytes` before.

    They run as the stories of the stream do; where that is too short, passages without the place come in between.
    """
    for index in itertools.count():
        words = Words(split, f"recall/{split}/{index}")
        story = _story(words)
        place = story.partition(" who lived in ")[2].partition(".")[0]
        context = story[: story.index(" sang a song of ") + len(" sang a song of ")]
        named = context.rindex(place) + len(place)
        far = context[named:].partition(" to find ")[2].partition(",")[0]
        between = context[named:].encode()
        room = distance_bytes - len(between)
        if 0 < room <= SHORT_OF_DISTANCE:
            continue
        waiting = context.rindex("They waited under a tree")
        passage = f"On the way to {far} {words.pick(('it grew dark', 'the wind turned', 'they grew tired'))}. "
        padding = passage * max(0, -(-room // len(passage)))
        yield RecallItem(context[:waiting] + padding + context[waiting:], place)
