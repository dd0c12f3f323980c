"""A corpus in which it is known what is a duplicate of what."""

import json
import random
import re

WORDS = [f"w{number}" for number in range(3000)]


def similarity(one, other, size=5):
    """Return the Jaccard similarity of two texts, in plain sets of tuples."""
    first, second = (set(grams(text, size)) for text in (one, other))
    return len(first & second) / len(first | second)


def grams(text, size):
    words = re.split(r"\W+", text.lower())
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)] or [tuple(words)]


def edited(rng, words, changes):
    """Return the words with some of them replaced."""
    words = list(words)
    for at in rng.sample(range(len(words)), changes):
        words[at] = rng.choice(WORDS)
    return words


def corpus(*, seed=3, originals=700, near=200, heavy=100, length=(80, 160)):
    """Return texts in mixed order, and the pairs of places that are near, and heavily edited."""
    rng = random.Random(seed)
    base = [[rng.choice(WORDS) for _ in range(rng.randint(*length))] for _ in range(originals)]
    made = [(words, number, "") for number, words in enumerate(base)]
    made += [(edited(rng, base[number], rng.randint(0, 1)), number, "near") for number in range(near)]
    made += [(edited(rng, base[number], len(base[number]) // 4), number, "heavy") for number in range(near, near + heavy)]
    rng.shuffle(made)
    place = {number: at for at, (_, number, kind) in enumerate(made) if not kind}
    pairs = {kind: [(place[number], at) for at, (_, number, own) in enumerate(made) if own == kind]
             for kind in ("near", "heavy")}  # fmt: skip
    return [" ".join(words) for words, _, _ in made], pairs


def write(path, texts):
    """Write texts as JSON lines with their place."""
    path.write_text("".join(json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(texts)))
    return path
