"""Write tickets.csv and replies.jsonl: invented messages to an invented shop's support desk.

The same seed gives the same rows. No text is from a real person.
"""

import csv
import json
import random
from itertools import islice
from pathlib import Path

TOPICS = {
    "billing": [
        "I was charged twice for order {n}.",
        "The invoice for order {n} shows the wrong address.",
        "My voucher was not taken off the price of order {n}.",
        "Please send the receipt for the {thing} again, order {n}.",
    ],
    "delivery": [
        "Order {n} has not arrived, it was due on {day}.",
        "The parcel with the {thing} went to the wrong house.",
        "The tracking of order {n} has said the same since {day}.",
        "Can the {thing} come on {day} instead?",
    ],
    "returns": [
        "The {thing} does not fit, I want to send it back.",
        "How do I get a label to return order {n}?",
        "I returned the {thing} on {day} and have no refund yet.",
        "The {thing} arrived broken, please exchange it.",
    ],
}
THINGS = ["lamp", "rucksack", "kettle", "desk chair", "rain jacket", "garden hose", "bicycle bell"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]
OPENINGS = ["", "Hello, ", "Good morning. ", "Second message: ", "Hi there, "]


def ticket(rng: random.Random) -> tuple[str, str]:
    """A message and its topic."""
    topic = rng.choice(list(TOPICS))
    template = rng.choice(TOPICS[topic])
    number = rng.randrange(1000, 9999)
    text = template.format(n=number, thing=rng.choice(THINGS), day=rng.choice(DAYS))
    return rng.choice(OPENINGS) + text, topic


def main(rows: int = 300) -> None:
    """Write both files to this script's folder."""
    rng, folder = random.Random(7), Path(__file__).parent
    tickets = [ticket(rng) for _ in range(rows)]
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "topic"])
        writer.writerows(tickets)
    replies = {
        "billing": "I am sorry about that. Accounts will check it and write to you today.",
        "delivery": "I am sorry for the wait. We will ask the carrier and tell you by tomorrow.",
        "returns": "No problem. A return label is on its way to you by e-mail.",
    }
    # Replies repeat no ticket: mixtune would drop those that also occur in the test split.
    unused = (row for row in iter(lambda: ticket(rng), None) if row not in tickets)
    with (folder / "replies.jsonl").open("w", encoding="utf-8") as file:
        for text, topic in islice(unused, 120):
            row = {"instruction": "Answer this customer.", "input": text, "output": replies[topic]}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
