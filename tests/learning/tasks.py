"""Eight small tasks of our own making, the same from a seed wherever they are made: NAME.{train100,train400,test}.jsonl.

usage: tasks.py OUT_DIR [SEED]

A prompt ends in a line break and no completion begins with a space, so prompt and completion are the same tokens apart and
together. No prompt of the tests is among the training examples; the 100 are the first of the 400.
"""
import json
import random
import sys
from pathlib import Path

TRAIN, TEST = 400, 200

NAMES = "Mara Otis Lena Hugo Iris Nils Tessa Ravi Noor Piet Alma Joss Yuki Bram Edda Kofi Zora Emil Dina Luca".split()
SURNAMES = "Quill Harrow Stern Vale Moss Tanner Brook Falk Winter Reed Marlow Hale Rook Linden Sharp Pike Frost Lark Boone Croft".split()
CITIES = "Oslo Lyon Cork Graz Turin Delft Porto Ghent Malmo Leeds Basel Riga Bern Split Nancy Kiel".split()
ITEMS = "lamp kettle map clock scarf radio mirror basket teapot bicycle ladder carpet vase drum tent globe".split()
COLOURS = "red blue green white black yellow grey brown".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def format_(rng):
    """Three ways to write down a person, one way wanted."""
    first, last, city, year = rng.choice(NAMES), rng.choice(SURNAMES), rng.choice(CITIES), rng.randint(1931, 2009)
    text = rng.choice(["{last}, {first}; {year}; {city}", "{first} {last} ({city}), born {year}", "{city} | {year} | {first} {last}"])
    return text.format(**locals()), f"{last.upper()} {first}, {city} '{year % 100:02}"


def dates(rng):
    """A day in a sentence, to ISO 8601."""
    year, month, day = rng.randint(1950, 2049), rng.randint(1, 12), rng.randint(1, 28)
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    name = MONTHS[month - 1]
    written = rng.choice([f"{name} {day}, {year}", f"{day} {name} {year}", f"the {day}{ending} of {name} {year}", f"{name[:3]} {day}{ending}, {year}"])
    sentence = rng.choice(["We open on {}.", "The letter is dated {}.", "Is {} still free?", "{}"]).format(written)
    return sentence, f"{year}-{month:02}-{day:02}"


UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def words(number):
    """`number` under 10,000 in British words."""
    if number < 20:
        return UNITS[number]
    if number < 100:
        return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")
    if number < 1000:
        return f"{UNITS[number // 100]} hundred" + (f" and {words(number % 100)}" if number % 100 else "")
    rest = number % 1000
    return f"{UNITS[number // 1000]} thousand" + (f"{' and' if rest < 100 else ''} {words(rest)}" if rest else "")


def numbers(rng):
    number = rng.randint(21, 9999) if rng.random() < 0.8 else rng.randint(21, 999)
    return str(number), words(number)


TOPICS = {
    "billing": ["I was charged twice for the {item}", "the invoice for the {item} is wrong", "the refund for my {item} is {n} euros short",
                "you took {n} euros too much", "the discount is missing from my bill", "I need a receipt for the {item}"],
    "delivery": ["the {item} has not arrived", "the parcel is {n} days late", "the courier left the {item} next door",
                 "I would like the {item} sent to {city}", "tracking has not moved for {n} days", "nobody rang when the {item} came"],
    "account": ["I can't log in any more", "please change my name to {name}", "the password mail never comes", "I want to close my account",
                "someone else uses my account", "my address should be in {city} now"],
    "fault": ["the {item} broke after {n} days", "the {item} makes a loud noise", "a part of the {item} is missing", "the {item} won't switch on",
              "there is a crack in the {item}", "the {item} smells of smoke"],
    "praise": ["the {item} is lovely", "your shop in {city} is wonderful", "{name} at the desk was so kind", "I would buy the {item} again",
               "best {item} in {n} years", "thank you for the quick answer"],
}


def classification(rng):
    """What a message wants: the main clause decides, not the other one."""
    label, other = rng.sample(list(TOPICS), 2)
    slots = {"item": rng.choice(ITEMS), "city": rng.choice(CITIES), "name": rng.choice(NAMES), "n": rng.randint(2, 19)}
    main, aside = (rng.choice(TOPICS[topic]).format(**slots) for topic in (label, other))
    text = rng.choice(["{main}.", "Although {aside}, {main}.", "{main}, even though {aside}.", "Never mind that {aside}: {main}."])
    text = text.format(main=main, aside=aside)
    return text[0].upper() + text[1:], label


THINGS = "the report,the photos,the keys,the tickets,the contract,the recipe,the slides,the address,the invoice,the plan".split(",")
PLACES = "the office,the station,the library,the cafe,the museum,the harbour".split(",")
INTENTS = [
    (["can u send {thing} by {day}? thx", "need {thing} by {day} pls", "gimme {thing} before {day} ok?"], "please send me {thing} by {Day}. Thank you."),
    (["can't make it {day}, sorry!!", "gotta skip {day}, my bad", "no way i can come {day} :("], "I regret that I cannot attend on {Day}."),
    (["meet u at {place} at {h}pm?", "wanna see me at {place}, {h}pm?", "{place} at {h}pm ok for u?"], "could we meet at {place} at {H}:00?"),
    (["got {thing}, cheers!", "ta for {thing}!!", "{thing} came, u rock"], "thank you for {thing}."),
    (["where's {thing}?? u had it {day}", "any idea where {thing} went? saw it {day}", "lost {thing}, had it {day}, help"],
     "do you know where {thing} may be? I last saw it on {Day}."),
]


def style(rng):
    """A note to a friend, as a letter would put it."""
    name, day, hour = rng.choice(NAMES), rng.choice(DAYS), rng.randint(1, 11)
    slots = {"thing": rng.choice(THINGS), "place": rng.choice(PLACES), "day": day[:3].lower(), "Day": day, "h": hour, "H": hour + 12}
    casual, formal = rng.choice(INTENTS)
    greeting = rng.choice(["hey {}, ", "{}! ", "yo {} "]).format(name.lower())
    return greeting + rng.choice(casual).format(**slots), f"Dear {name}, {formal.format(**slots)}"


SALES = [
    "On {day} {name} went to {city} and bought a {colour} {item} for {price} euros, not the {item2} for {price2}.",
    "{name} looked at a {item2} ({price2} euros) and then took the {colour} {item} home to {city} for {price} euros.",
    "For {price} euros, the {colour} {item} in {city} was cheaper than the {item2} at {price2}, so {name} paid for it.",
    "The {item2} was {price2} euros; {name} from {city} paid {price} for the {colour} {item} instead on {day}.",
]


def extraction(rng):
    """What was bought, for how much, where; not what was left in the shop."""
    item, item2 = rng.sample(ITEMS, 2)
    slots = {"day": rng.choice(DAYS), "name": rng.choice(NAMES), "city": rng.choice(CITIES), "colour": rng.choice(COLOURS)}
    price, price2 = rng.sample(range(3, 250), 2)
    return rng.choice(SALES).format(item=item, item2=item2, price=price, price2=price2, **slots), f"{slots['colour']} {item}; {price}; {slots['city']}"


def plain(number):
    """At most three decimals, none that are 0."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def units(rng):
    """Lengths, masses, volumes and times; up and down."""
    kind = rng.randrange(6)
    if kind == 0:
        (big, small), number = rng.choice([("km", "m"), ("kg", "g"), ("l", "ml")]), rng.choice([rng.randint(2, 99), rng.randint(11, 99) / 10])
        return f"{plain(number)} {big} in {small}", f"{plain(number * 1000)} {small}"
    if kind == 1:
        (big, small), number = rng.choice([("km", "m"), ("kg", "g"), ("l", "ml")]), rng.randint(11, 99) * 100
        return f"{number} {small} in {big}", f"{plain(number / 1000)} {big}"
    if kind == 2:
        number = rng.randint(101, 999)
        return f"{number} cm in m", f"{plain(number / 100)} m"
    if kind == 3:
        number = rng.randint(11, 999) / 10
        return f"{plain(number)} cm in mm", f"{plain(number * 10)} mm"
    if kind == 4:
        number = rng.randint(61, 299)
        return f"{number} min in h and min", f"{number // 60} h {number % 60} min"
    number = rng.randint(2, 99)
    return f"{number} h in min", f"{number * 60} min"


EMOJI = {
    "cat": "🐱", "dog": "🐶", "fox": "🦊", "frog": "🐸", "bee": "🐝", "fish": "🐟", "pizza": "🍕", "apple": "🍎", "lemon": "🍋", "cake": "🍰",
    "car": "🚗", "train": "🚆", "boat": "⛵", "house": "🏠", "tree": "🌳", "star": "⭐", "moon": "🌙", "book": "📖", "key": "🔑", "gift": "🎁",
}
PLURALS = {"fox": "foxes", "fish": "fish"}


def emoji(rng):
    """One picture a thing, as many as there are."""
    groups = []
    for noun in rng.sample(list(EMOJI), rng.randint(1, 3)):
        count = rng.randint(1, 3)
        named = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" if count == 1 else f"{UNITS[count]} {PLURALS.get(noun, noun + 's')}"
        groups.append((named, EMOJI[noun] * count))
    named = [name for name, _ in groups]
    listed = ", ".join(named[:-1]) + (" and " if len(named) > 1 else "") + named[-1]
    return rng.choice(["{}", "I can see {}.", "Draw {}!"]).format(listed), "".join(pictures for _, pictures in groups)


TASKS = {
    "format": format_, "dates": dates, "numbers": numbers, "classification": classification,
    "style": style, "extraction": extraction, "units": units, "emoji": emoji,
}


def examples(name, seed):
    """`TRAIN` and `TEST` examples, no prompt twice."""
    rng, found = random.Random(f"{name} {seed}"), {}
    while len(found) < TRAIN + TEST:
        text, answer = TASKS[name](rng)
        found.setdefault(f"{text}\n", answer)
    return [{"prompt": prompt, "completion": answer} for prompt, answer in found.items()]


def main():
    out, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    out.mkdir(parents=True, exist_ok=True)
    for name in TASKS:
        lines = [json.dumps(example, ensure_ascii=False) + "\n" for example in examples(name, seed)]
        for part, of in [("train100", lines[:100]), ("train400", lines[:TRAIN]), ("test", lines[TRAIN:])]:
            (out / f"{name}.{part}.jsonl").write_text("".join(of), encoding="utf-8")


if __name__ == "__main__":
    main()
