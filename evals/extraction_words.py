"""The words and wordings of the extraction task, in two halves that share none of them.

A model is taught with the one half and judged with the other, so that it cannot answer from memory.
Rules for the lists (`tests/evals/test_extraction.py` holds them):

- a name is a first name and no city or common word in these sentences; a city is no first name;
- a job is one word, and its article follows from its first letter;
- no name, job or city stands in any wording, and none in both halves;
- a wording has one right reading: the person whose job is told, and the city where that person
  lives or works now. `plain` wordings hold nothing else; `distracting` ones also a date, a second
  city or a second person.

The places in a wording: `{n}` the person, `{j}` the job, `{a}` the job with its article, `{c}` the
city, `{o}` another person, `{p}` another city, `{y}` a year, `{d}` a date.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Half:
    """One half of the words and wordings."""

    names: tuple[str, ...]
    jobs: tuple[str, ...]
    cities: tuple[str, ...]
    plain: tuple[str, ...]
    distracting: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = ("January", "February", "October", "November", "December")

TRAINING = Half(
    names=_words(
        """Maria Peter Anna Lukas Daniel Elena Thomas Clara Hanna Robert Julia Simon Laura Martin
        Emma Paul Lena Nina David Alice Marta George Irene Walter Susan Henry Karin Pedro Ahmed
        Lucia Marco Ellen Jonas Fatima Diego Helen Andrei Monica Kenji Sarah Oliver Amina Erik
        Teresa Felix Judith Carlos Ursula Philip Nadia Bruno Sandra Edgar Leila Hugo Claire Ivan
        Samuel Yuki Anton Esther Pablo Linda Gerald Carmen Igor Doris Omar Lars Agnes Tariq
        Edith"""
    ),
    jobs=_words(
        """dentist baker pilot teacher nurse plumber lawyer farmer painter engineer waiter tailor
        butcher journalist chemist gardener librarian mechanic surgeon architect actor welder
        dancer miner florist cleaner driver editor referee roofer diver auditor accountant analyst
        usher illustrator inspector interpreter tutor professor janitor secretary receptionist
        pharmacist physicist composer pianist poet jockey boxer shepherd fisherman brewer bartender
        steward porter blacksmith watchmaker glazier postman detective nanny"""
    ),
    cities=_words(
        """Oslo Madrid Vienna Dublin Prague Lisbon Warsaw Athens Berlin Hamburg Turin Seville Bergen
        Krakow Munich Zurich Geneva Rome Naples Brussels Antwerp Rotterdam Utrecht Stockholm
        Helsinki Tallinn Riga Vilnius Budapest Zagreb Belgrade Bucharest Istanbul Ankara Bristol
        Leeds Glasgow Edinburgh Liverpool Oxford Cardiff Belfast Porto Valencia Malaga Bilbao
        Bordeaux Toulouse Marseille Lille Lyon Basel Bern Salzburg Graz Dresden Leipzig Bremen
        Copenhagen Aarhus Minsk Kyiv"""
    ),
    plain=(
        "{n} is {a} who lives in {c}.",
        "{n} works as {a} in {c}.",
        "In {c} there is {a} called {n}.",
        "My friend {n}, {a}, has moved to {c}.",
        "We hired {n} as {a} for our office in {c}.",
        "{n} from {c} wants to become a better {j}.",
        "The {j} {n} has a small flat in {c}.",
        "Ask {n}, the {j} in {c}, about the bill.",
        "After ten years in {c}, {n} is still {a}.",
        "Please send the parcel to {n}, {a} in {c}.",
        "There is no better {j} in {c} than {n}.",
        "{c} has a new {j}, and the name is {n}.",
        "Name: {n}. Job: {j}. City: {c}.",
        "{n} ({j}, {c}) will open the meeting.",
        "Hello, I am {n} and I work as {a} here in {c}.",
        "Everybody in {c} knows the {j} {n}.",
        "If you need {a} in {c}, ring {n}.",
        "The best {j} of {c} is called {n}.",
        "{n} earns good money as {a} in {c}.",
        "For the shop in {c} they found {a} named {n}.",
    ),
    distracting=(
        "Since {y}, {n} has been {a} in {c}.",
        "The {j} {n} started work in {c} on {d}.",
        "{n} was born in {p} but now works as {a} in {c}.",
        "{n}, {a} in {c}, is visiting {p} this week.",
        "{o} told me that {n} is {a} in {c}.",
        "{n} left {p} in {y} and is {a} in {c} today.",
        "The {j} {n} lives in {c}, not in {p}.",
        "{n} is {a} in {c}; {o} is a cousin from {p}.",
        "Deliver to {n}, {a} in {c}, before {d}.",
        "With {o} away, {n} is the only {j} in {c}.",
    ),
)

HELD_OUT = Half(
    names=_words(
        """Ingrid Mateo Yusuf Beatrice Gustav Chloe Rafael Wendy Tobias Miriam Stefan Bianca Arthur
        Freya Dmitri Olivia Hassan Leonard Zoe Astrid Boris Camila Dennis Elias Fiona Gregor Harriet
        Ibrahim Joanna Kurt Lydia Marcus Noemi Otto Priya Quentin Ramona Sven Tamara Ulrich Valeria
        Wilma Xavier Gloria Naomi Rupert"""
    ),
    jobs=_words(
        """carpenter violinist barber astronaut translator cashier photographer electrician sculptor
        optician banker sailor potter chef biologist drummer firefighter goalkeeper magician
        locksmith midwife paramedic novelist beekeeper forester barista courier geologist cobbler
        surveyor weaver undertaker umpire innkeeper animator economist programmer"""
    ),
    cities=_words(
        """Boston Cairo Tokyo Nairobi Toronto Lima Seoul Havana Mumbai Jakarta Chicago Manila Delhi
        Lagos Accra Tunis Casablanca Montreal Vancouver Ottawa Seattle Miami Atlanta Detroit Quito
        Bogota Caracas Melbourne Brisbane Perth Auckland Osaka Kyoto Hanoi Bangkok Taipei Beijing
        Shanghai Kolkata Karachi Lahore Dhaka Baghdad Tehran Riyadh Beirut"""
    ),
    plain=(
        "Yesterday in {c} I met {n}, who earns a living as {a}.",
        "{c} is home to {n}, {a} by trade.",
        "They say that {n} is the finest {j} in all of {c}.",
        "Having settled in {c}, {n} found a post as {a}.",
        "{n} talked about life as {a} in {c}.",
        "Our guest tonight is {n}, {a} from {c}.",
        "Looking for {a} in {c}? Call {n}.",
        "Few people in {c} work as hard as {n}, the {j}.",
        "A letter came from {c}: {n} is {a} there.",
        "The prize for the best {j} goes to {n} of {c}.",
        "Meet {n}, who loves being {a} in {c}.",
        "{n} | {j} | {c}",
        "Thanks to {n}, {c} has a skilled {j} again.",
    ),
    distracting=(
        "In {y} {n} studied in {p}; today this {j} lives in {c}.",
        "{o} asked {n}, {a} in {c}, for advice.",
        "Though the family is from {p}, {n} lives in {c} and works as {a}.",
        "On {d}, {n} began a new life in {c} as {a}.",
        "{n} flew from {p} home to {c} to work as {a} again.",
        "Not {o} but {n} was chosen as the new {j} in {c}.",
        "{n} sold the house in {p} and became {a} in {c}.",
    ),
)
