"""The invented world of the built-in pair: who the people are, and which hop each model knows.

Every question needs two hops. The sharer was trained on the first (Fufuva's home town is Cairo), the
receiver on the second (Cairo lies in Egypt); neither was ever shown the other's. So an exact answer
about a person whom fuser training never used can only have come through the cache.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SEED = 20261122
TOLD_SEED = SEED + 1000  # of people whom neither model was trained on, of whom a sharer is told in private
NUM_TOLD_WORLDS = 20  # with fewer people a mapper learns their names by heart
NUM_PEOPLE = 500
NUM_HELD_OUT = 100


@dataclass(frozen=True)
class Relation:
    """One kind of fact: `noun` names it, `questions` ask for its second hop.

    `second_hop` maps each value that the sharer may state to the answer that the receiver gives.
    """

    noun: str
    questions: tuple[str, ...]
    second_hop: dict[str, str]


def read_pairs(text: str) -> dict[str, str]:
    return dict(pair.split() for pair in text.split(","))


RELATIONS = (
    Relation(
        noun="home town",
        questions=("In which country does {name} live?", "What is the country of {name}?"),
        second_hop=read_pairs(
            "Oslo Norway, Paris France, Rome Italy, Madrid Spain, Berlin Germany, Tokyo Japan, "
            "Cairo Egypt, Lima Peru, Athens Greece, Delhi India, Vienna Austria, Warsaw Poland"
        ),
    ),
    Relation(
        noun="job",
        questions=("At which place does {name} work?", "What is the workplace of {name}?"),
        second_hop=read_pairs(
            "Teacher school, Doctor hospital, Judge court, Cook kitchen, Pilot airport, Actor theatre, "
            "Sailor ship, Monk abbey, Miner pit, Clerk office, Guard prison, Farmer field"
        ),
    ),
    Relation(
        noun="pet",
        questions=("Which sound does the pet of {name} make?", "What does the animal of {name} say?"),
        second_hop=read_pairs(
            "Cat meow, Dog bark, Cow moo, Duck quack, Lion roar, Wolf howl, "
            "Snake hiss, Horse neigh, Pig oink, Owl hoot, Bee buzz, Sheep baa"
        ),
    ),
    Relation(
        noun="favourite book",
        questions=("Who wrote the favourite book of {name}?", "Which author does {name} like?"),
        second_hop=read_pairs(
            "Hamlet Shakespeare, Emma Austen, Dracula Stoker, Ulysses Joyce, Faust Goethe, Odyssey Homer, "
            "Inferno Dante, Candide Voltaire, Walden Thoreau, Quixote Cervantes, Lolita Nabokov, Carrie King"
        ),
    ),
)

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


@dataclass(frozen=True)
class Fact:
    """What the sharer knows about one person under one relation, with the question that needs it."""

    name: str
    relation: Relation
    value: str
    question: str

    @property
    def statement(self) -> str:
        """The sharer's sentence; the value stands first, so that the prompt's last token must know it."""
        return f"{self.value} is the {self.relation.noun} of {self.name}."

    @property
    def plain_statement(self) -> str:
        """The same fact with the value last, as running text would have it."""
        return f"The {self.relation.noun} of {self.name} is {self.value}."

    @property
    def questions(self) -> list[str]:
        """The question in every wording."""
        return [wording.format(name=self.name) for wording in self.relation.questions]

    @property
    def answer(self) -> str:
        return self.relation.second_hop[self.value]


def invent_name(rng: random.Random) -> str:
    """A name of three syllables, such as Ribigo: several tokens in either tokenizer."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(3)).capitalize()


def people(seed: int = SEED) -> tuple[list[str], list[str]]:
    """The names of the (fuser-training, held-out) people; all are known to the sharer."""
    rng = random.Random(seed)
    names: set[str] = set()
    while len(names) < NUM_PEOPLE:
        names.add(invent_name(rng))
    shuffled = rng.sample(sorted(names), NUM_PEOPLE)
    return shuffled[NUM_HELD_OUT:], shuffled[:NUM_HELD_OUT]


def facts(seed: int = SEED) -> tuple[list[Fact], list[Fact]]:
    """Four facts for every person, as (fuser-training, held-out).

    Values are dealt evenly within each part, so that a constant guess is right once in twelve.
    """
    rng = random.Random(seed + 1)
    parts = []
    for names in people(seed):
        part = []
        for relation in RELATIONS:
            values = list(relation.second_hop)
            dealt = [values[i % len(values)] for i in range(len(names))]
            rng.shuffle(dealt)
            for name, value in zip(names, dealt):
                part.append(Fact(name, relation, value, rng.choice(relation.questions).format(name=name)))
        parts.append(part)
    return parts[0], parts[1]


def told_facts() -> tuple[list[Fact], list[Fact]]:
    """Facts about people whom neither model was trained on, for a sharer to be told, as (mapper-training, held-out)."""
    known = {name for names in people() for name in names}
    worlds = [facts(TOLD_SEED + i) for i in range(NUM_TOLD_WORLDS)]
    held_out = [fact for fact in worlds[0][1] if fact.name not in known]
    known |= {fact.name for fact in held_out}
    return [fact for train, _ in worlds for fact in train if fact.name not in known], held_out
