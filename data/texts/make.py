"""Write the sample of English again: ``python data/texts/make.py`` (two cores: about five minutes).

The embedded model continues short beginnings of many kinds, a few times each, sampled at
temperature 0.9 within the likeliest 95 per cent. What it makes up is not true; it is text on which
a model of its size does what it does. The kit's notebooks look at dictionaries on it, offline.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import torch

import kit
from kit.base.progress import track
from kit.models.bridge import runtime

HERE = Path(__file__).parent
COPIES, TOKENS, SEED = 4, 160, 0
BEGINNINGS = [
    # stories
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "The night train left the station, and Clara opened the letter that",
    "Nobody had entered the attic since grandmother died. When Tom",
    "The dragon was not angry. It was tired, and it wanted",
    '"You are late," said the captain. "We sail in ten minutes, and',
    "The robot had been alone on the station for eleven years when",
    "It was raining in the city, and the detective lit",
    "My brother and I found the map under the floor of the barn. It showed",
    # letters, talk
    "Dear Mr. Harris,\n\nThank you for your letter of March 14. We are pleased to",
    "Dear Aunt Rose,\n\nI am writing to you from the mountains, where",
    "Hi Sarah,\n\nAre you free on Friday evening? I was thinking that",
    "A: Good morning, how can I help you?\nB: I would like to book",
    "Doctor: What seems to be the problem?\nPatient: I have had a headache for",
    "Interviewer: You began to paint when you were forty. Why?\nArtist:",
    # news
    "LONDON - The prime minister said on Tuesday that the government would",
    "The city council voted last night to close the old bridge, after",
    "Shares of the company fell nine per cent on Wednesday after",
    "A strong earthquake struck the northern coast early on Monday,",
    "The election results surprised everyone: the smaller party",
    "Police are looking for two men who robbed a bank in",
    # sport, leisure
    "The home team scored twice in the second half, but the goalkeeper",
    "She won the gold medal in swimming at the age of seventeen, and",
    "In chess, the most important thing at the beginning of a game is",
    "This film is a disappointment. The actors do their best, but",
    "I loved this movie from the first minute. The story of",
    "The novel tells the story of three sisters in Ireland who",
    "The concert began with a slow piece for violin and piano by",
    "Our hotel was near the beach, the breakfast was good, but",
    "I bought this vacuum cleaner two months ago. It is quiet, and",
    # food, home, garden
    "To make tomato soup, you need one onion, two cloves of garlic, and",
    "Preheat the oven to 180 degrees. Mix the flour, the butter and",
    "Bread has been baked for thousands of years. In Egypt,",
    "Roses need at least six hours of sun a day. In spring,",
    "To paint a wooden door, first remove the old paint with",
    "The best coffee is made with fresh water and beans that",
    # science
    "Photosynthesis is the process by which plants turn light into",
    "The planet Jupiter is the largest in the solar system. Its moons",
    "Water boils at 100 degrees Celsius at sea level, but",
    "Whales are mammals. They breathe air, and their young",
    "The heart pumps blood through the body. The blood carries oxygen to",
    "An electron has a negative charge, while a proton",
    "Bees live in colonies of thousands. The queen",
    "Volcanoes form where the plates of the crust",
    "The theory of evolution says that species change over time because",
    "Chemists distinguish acids from bases by",
    "A black hole is a region of space where gravity is so strong that",
    "Penicillin was discovered by accident in 1928, when",
    # history, places
    "The Roman Empire reached its greatest extent under Trajan. After",
    "In 1492 Columbus sailed west, hoping to find",
    "The French Revolution began in 1789, when the people of Paris",
    "During the Second World War, many children were sent from London to",
    "Abraham Lincoln was born in a log cabin in Kentucky. He",
    "The pyramids were built by thousands of workers who",
    "Tokyo is the capital of Japan. The city has",
    "Paris is known for the Eiffel Tower, the Louvre, and",
    "The desert of Namibia is one of the oldest in the world. At night",
    "Norway is a country of mountains and fjords. Its people",
    # law, money, work
    "This agreement is made between the tenant and the landlord. The tenant shall",
    "The court found that the defendant had not paid the money that",
    "Section 4. Every member has the right to vote, unless",
    "A mortgage is a loan for buying a house. The bank",
    "Our sales rose by 12 percent in the third quarter, while costs",
    "To apply for this job, please send your curriculum vitae and",
    "The meeting began at 9:30. Present were Mrs. Lee, Mr. Patel and",
    # religion, philosophy, poems
    "And God said to Moses, Go down to the people, and",
    "Blessed are they who walk in peace, for",
    "What is justice? Plato answers that",
    "The monk swept the yard of the temple every morning. A visitor asked",
    "The moon is white, the river wide,\nand all the",
    "O winter wind, that shakes the bare",
    "Freedom means that a person may",
    # computing, mathematics
    'def mean(values):\n    """Return the mean of a list of numbers."""\n',
    "import json\n\nwith open('data.json') as file:\n",
    "<html>\n<head><title>My garden</title></head>\n<body>\n<h1>",
    "SELECT name, price FROM products WHERE",
    "To install the program on Windows, download the file and",
    "A computer stores numbers as bits. A byte has",
    "If a train travels 60 miles in one hour, then in three hours it",
    "Let x be a number such that 2x + 3 = 11. Then",
    "The area of a triangle is half of its base times",
    "Monday: 12, Tuesday: 15, Wednesday: 9, Thursday:",
    # advice, body and mind
    "To sleep better, go to bed at the same time every night, and",
    "If your child has a fever, you should",
    "Three things make a good friend. First,",
    "Running is good for your health, but beginners should",
    "How to learn a language: begin with",
    "When you feel angry, stop, breathe, and",
    "Many people are afraid of flying. They",
    # other languages
    "Es war einmal ein König, der hatte drei Töchter, und",
    "Das Wetter in Deutschland ist im Winter",
    "Der Hund und die Katze leben in einem Haus, aber",
    "Il était une fois une petite fille qui",
    "La ville de Lyon est connue pour sa cuisine et",
    "El perro corre por la calle porque",
    "La casa de mi abuela tiene un jardín con",
    # lists and forms
    "Shopping list:\n- milk\n- eggs\n-",
    "Q: What is the capital of Italy?\nA: Rome.\nQ: What is the capital of Spain?\nA:",
    "Name: Peter Miller\nAge: 34\nJob: carpenter\nHobbies:",
    "Chapter 1\n\nThe road to the castle was long, and",
    "Ingredients: 200 g sugar, 3 eggs, 1 lemon.\nMethod:",
    "January is the first month of the year. February",
]


def main() -> None:
    model = kit.load_model(dtype="float32")
    decoder, words = runtime(model).decoder, model.tokenizer
    end = words.eos_token_id
    torch.manual_seed(SEED)
    rows = [words(start).input_ids for start in BEGINNINGS]
    width = max(map(len, rows))  # the beginnings end together, so that all are continued at once
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = []
    for _ in track(range(COPIES), "samples of each"):
        out = decoder.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=0.9,
            top_p=0.95,
            top_k=0,
            max_new_tokens=TOKENS,
            pad_token_id=end,
        )
        found += [words.decode(row, skip_special_tokens=True).strip() for row in out]
    shuffled = [found[i] for i in torch.randperm(len(found)).tolist()]
    # a fixed time in the header: the same texts make the same file
    with (
        open(HERE / "sample.json.gz", "wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file,
    ):
        file.write(json.dumps(shuffled, ensure_ascii=False, indent=0).encode())
    tokens = sum(len(words(t).input_ids) for t in shuffled)
    print(f"{len(shuffled)} texts, {tokens:,} tokens", file=sys.stderr)


if __name__ == "__main__":
    main()
