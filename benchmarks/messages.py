"""An invented shop's messages in five classes, to try the sorter of the README on, and TF-IDF beside it.

    python benchmarks/messages.py FOLDER              # writes messages.csv and, in other words, asked.csv
    python benchmarks/messages.py FOLDER --tfidf      # what scikit-learn's TF-IDF + logistic regression makes of them

Every frame below is written by hand; a frame stands in one of the two files only, so that what is asked is worded
otherwise than what is learned. Things, places and numbers are drawn into both.
"""

import argparse
import csv
import random
from pathlib import Path

SLOTS = {
    "thing": ["kettle", "desk lamp", "rain jacket", "backpack", "office chair", "coffee grinder", "wool blanket",
              "bicycle light", "pair of boots", "water bottle", "bookshelf", "headphones", "tent", "keyboard",
              "winter coat", "toaster"],
    "day": ["Monday", "Tuesday", "Friday", "Saturday", "last week", "yesterday", "the 4th", "the weekend"],
    "long": ["two days", "three days", "a week", "ten days", "two weeks", "a month"],
    "money": ["19.90", "45 euros", "12 pounds", "89.00", "7.50", "130 dollars"],
    "number": ["4471", "20385", "118-22", "77120", "A9034", "5561"],
    "place": ["Leeds", "Lyon", "Oslo", "Porto", "Graz", "my office", "my neighbour", "the pickup shop"],
    "hello": ["", "", "", "", "Hello, ", "Hi, ", "Hi there, ", "Good morning, ", "Dear team, "],
    "bye": ["", "", "", "", "", " Thanks.", " Thank you!", " Please help.", " Best wishes, Ana", " Regards"],
}  # fmt: skip

LEARNED = {
    "delivery": [
        "where is my parcel? I ordered the {thing} {long} ago.",
        "my order {number} has still not arrived.",
        "the tracking page has shown no change for {long}.",
        "when will the {thing} be delivered?",
        "the courier left my package with {place} and nobody there has it.",
        "it says delivered on {day}, but I did not receive anything.",
        "can you ship the {thing} to {place} instead?",
        "how long does shipping to {place} take?",
        "I was at home on {day} and the driver never rang.",
        "is it possible to have order {number} sent by express?",
        "my package seems to be stuck at the depot in {place}.",
        "do you deliver on Saturdays?",
        "please tell me the tracking number of order {number}.",
        "half of my order came, the {thing} is still on its way I hope?",
        "the delivery address of {number} is wrong, it should be {place}.",
        "the parcel was left out in the rain by the delivery man.",
        "still waiting for my {thing}, it should have been here {day}.",
        "has order {number} been dispatched yet?",
    ],
    "billing": [
        "I was charged twice for order {number}.",
        "my card was debited {money} and I do not know why.",
        "can I get an invoice for the {thing}?",
        "the invoice for {number} shows the wrong amount.",
        "why did I pay {money} in fees?",
        "I paid with my credit card on {day} and the payment is still pending.",
        "the discount code was not taken off my bill.",
        "please send me a receipt with VAT for order {number}.",
        "my bank statement lists your shop {money} too much.",
        "can I pay by bank transfer?",
        "the payment was declined although there is money on my account.",
        "do you accept instalments for the {thing}?",
        "the price at checkout was higher than on the page.",
        "I need our company name on the invoice {number}.",
        "I cancelled on {day} but you still took {money}.",
        "you billed me for a {thing} that I never bought.",
        "is my credit card charged before you send the goods?",
        "why are there two payments of {money}?",
    ],
    "returns": [
        "I want to send back the {thing}.",
        "how do I return order {number}?",
        "the {thing} does not fit, can I exchange it for a larger one?",
        "I would like a refund for the {thing}.",
        "where do I find the return label?",
        "I returned the {thing} {long} ago and have not got my money back.",
        "can I bring the {thing} back to a shop in {place}?",
        "is it free to return something?",
        "how many days do I have to send an item back?",
        "the return label for {number} cannot be printed.",
        "I changed my mind and wish to return my order.",
        "please swap the {thing} for a blue one.",
        "when will I be refunded for {number}?",
        "I opened the box, may I still return the {thing}?",
        "I bought two by mistake and want to give one back.",
        "my refund of {money} has not been paid out.",
        "the colour is not what I expected, I want my money back.",
        "do I have to pay for sending the {thing} back?",
    ],
    "account": [
        "I cannot log in.",
        "I forgot my password and the reset mail does not come.",
        "please change the email address of my account.",
        "how do I delete my account?",
        "my account is locked since {day}.",
        "the login page says my username is unknown.",
        "I want to change my password.",
        "please remove me from your newsletter.",
        "somebody else has signed in to my account.",
        "how can I update my phone number in my profile?",
        "I have two accounts, can you merge them?",
        "the verification code for signing in never arrives.",
        "I cannot register with my email address.",
        "where can I see the orders in my profile?",
        "please delete all personal data you have about me.",
        "the app logs me out every time.",
        "I no longer have access to the email I signed up with.",
        "how do I turn on two-step login?",
    ],
    "product": [
        "the {thing} is broken.",
        "does the {thing} come in green?",
        "the {thing} stopped working after {long}.",
        "what size is the {thing}?",
        "is the {thing} waterproof?",
        "how do I clean the {thing}?",
        "a screw is missing in the box of the {thing}.",
        "the {thing} makes a strange noise.",
        "which battery does the {thing} need?",
        "when will the {thing} be in stock again?",
        "the zip of the {thing} came off on {day}.",
        "is there a manual for the {thing}?",
        "what material is the {thing} made of?",
        "the {thing} arrived with a scratch on it.",
        "does the {thing} have a warranty?",
        "how heavy is the {thing}?",
        "the {thing} does not switch on any more.",
        "can I buy spare parts for the {thing}?",
    ],
}

ASKED = {
    "delivery": [
        "any news about the shipment of {number}? It is {long} late.",
        "your driver put the box in front of the wrong door.",
        "I need the {thing} before {day}, will it get here in time?",
        "no parcel has come so far, what happened to it?",
        "could the courier leave it with {place}?",
        "my tracking link does not show where the package is.",
        "I moved to {place}, please send {number} to the new address.",
        "how much longer until my order arrives?",
        "the postman says that he has no package for me.",
        "do you ship to {place}?",
    ],
    "billing": [
        "there is a charge of {money} on my card that I cannot explain.",
        "I have not got an invoice for {number} yet.",
        "you took the money twice!",
        "my voucher was not accepted, so I paid the full price.",
        "the VAT on my receipt is wrong.",
        "paying by card fails every time.",
        "may I pay for the {thing} in three instalments?",
        "which payment methods do you accept?",
        "please correct the company address on our bill.",
        "the amount that was debited is not the price of the {thing}.",
    ],
    "returns": [
        "the {thing} is too small, I would rather have a bigger one.",
        "please take the {thing} back.",
        "I am still waiting for the refund of {money}.",
        "what is your return policy?",
        "I sent everything back on {day}, when do I get the money?",
        "can I exchange my {thing}?",
        "I don't like the {thing} and would like to return it.",
        "I need a new return label for {number}.",
        "how does an exchange work?",
        "may I hand in my return at {place}?",
    ],
    "account": [
        "my password is not accepted any more.",
        "close my account, please.",
        "I get no mail when I try to reset the password.",
        "signing in fails on my phone.",
        "I would like to use another email for my login.",
        "stop sending me the newsletter.",
        "I think my account was hacked {day}.",
        "my profile shows an old name, how do I change it?",
        "the code for the login is never sent to me.",
        "which data about me do you store?",
    ],
    "product": [
        "my {thing} came with a crack.",
        "is the {thing} also sold in red?",
        "how wide and how high is the {thing}?",
        "after {long} the {thing} has stopped.",
        "a part of the {thing} is missing.",
        "can the {thing} get wet?",
        "is the {thing} made of real leather?",
        "the {thing} is sold out, when is it back in stock?",
        "how long is the warranty on the {thing}?",
        "I cannot find instructions for the {thing}.",
    ],
}


def messages(frames: dict[str, list[str]], each: int, seed: int) -> list[tuple[str, str]]:
    """`each` different messages of every class, in a drawn order, every frame about equally often."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    for label, of_class in frames.items():
        goal, number = len(found) + each, 0
        while len(found) < goal:
            frame = "{hello}" + of_class[number % len(of_class)] + "{bye}"
            text = frame.format(**{name: draw.choice(words) for name, words in SLOTS.items()})
            found.setdefault(text[0].upper() + text[1:], label)
            number += 1
    return draw.sample([*found.items()], len(found))


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    """A CSV with a header."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def tfidf(learned: list[tuple[str, str]], asked: list[tuple[str, str]]) -> float:
    """The share of `asked` that scikit-learn gets right, words and pairs of words, C = 10."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit(*zip(*learned, strict=True))
    return model.score(*zip(*asked, strict=True))


def main() -> None:
    """Writes the two files, and with --tfidf prints what TF-IDF gets right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=60, help="learned messages of each class")
    parser.add_argument("--tfidf", action="store_true")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    learned, asked = messages(LEARNED, arguments.each, 0), messages(ASKED, 20, 1)
    write(arguments.folder / "messages.csv", learned)
    write(arguments.folder / "asked.csv", asked)
    print(f"{len(learned)} rows in messages.csv, {len(asked)} in asked.csv")
    if arguments.tfidf:
        print(f"TF-IDF: {tfidf(learned, asked):.3f} of asked.csv right")


if __name__ == "__main__":
    main()
