"""Seeded sentences and the compact JSON that they say: faker_train.jsonl (400), faker_test.jsonl (200). Needs: pip install faker

usage: faker_data.py OUT_DIR
"""
import json
import random
import sys
from pathlib import Path

from faker import Faker

FORMS = [
    "{name} from {city} ordered {count} {item} on {date}.",
    "On {date}, {name} of {city} bought {count} {item}.",
    "Please send {count} {item} to {name} in {city}, due {date}.",
    "{count} {item} were delivered to {name}, {city}, on {date}.",
]
ITEMS = ["lamps", "chairs", "books", "mugs", "pens", "bags", "clocks", "maps"]


def examples(fake, rng, count):
    for _ in range(count):
        fields = {
            "name": f"{fake.first_name()} {fake.last_name()}",
            "city": fake.city(),
            "count": rng.randint(2, 99),
            "item": rng.choice(ITEMS),
            "date": fake.date(),
        }
        text = rng.choice(FORMS).format(**fields)
        yield {"prompt": f"{text}\n", "completion": json.dumps(fields, separators=(",", ":"))}


def main():
    fake, rng, out = Faker("en_US"), random.Random(7), Path(sys.argv[1])
    Faker.seed(7)
    for name, count in [("train", 400), ("test", 200)]:
        lines = [json.dumps(example) + "\n" for example in examples(fake, rng, count)]
        (out / f"faker_{name}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
