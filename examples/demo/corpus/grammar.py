# SPDX-License-Identifier: Apache-2.0
"""From tables to conversations.

A topic is a function of the speaker's state that returns exchanges `(user, reply)`; a dialogue is
an optional system prompt and a few topics. `Speaker.held` picks the wordings that training never
uses; evaluation sets it for the question under test.
"""
import random
import zlib

from . import facts, identity, talk_en, talk_zh
from .relations import RELATIONS, WRAP

TABLES = {"en": talk_en, "zh": talk_zh}
LANGUAGES = ("en", "zh")


def capital(text):
    return text[:1].upper() + text[1:]


def with_article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


class Speaker:
    """What one conversation knows: language, who the model is, and the style of its answers."""

    def __init__(self, rng, lang, held=False):
        self.rng, self.lang, self.held, self.brief = rng, lang, held, False
        self.name, self.author, self.verb, self.kind = identity.NAME, identity.AUTHOR, identity.VERB, identity.KIND

    @property
    def words(self):
        return TABLES[self.lang]

    def choose(self, usual, held):
        return self.rng.choice(held if self.held and held else usual)

    def me(self):
        return {"name": self.name[self.lang], "author": self.author[self.lang], "kind": self.kind[self.lang],
                "made": self.verb[self.lang]}

    def ask(self, text):
        return text if self.held else roughen(self.rng, self.lang, text)


def roughen(rng, lang, text):
    """Write a question as hurried people do: no capital, no full stop, a polite word around it."""
    dice = rng.random()
    if dice < 0.45:
        return text
    words = TABLES[lang]
    if dice < 0.63:
        head = rng.choice(words.POLITE_HEAD)
        if lang == "en" and head[-2] in ",:" and not text.startswith(("I ", "I'm ")) and rng.random() < 0.5:
            text = text[0].lower() + text[1:]
        return head + text
    if dice < 0.70:
        return text + rng.choice(words.POLITE_TAIL)
    if lang == "zh":
        return text.rstrip("。？！") if dice < 0.88 else text.replace("？", "?").replace("！", "!").replace("，", ",")
    if dice < 0.80:
        return text.rstrip(".?!")
    if dice < 0.90:
        return text.lower()
    return text.lower().rstrip(".?!")


def talk(sp, intent):
    asks, held, says = sp.words.TALK[intent]
    return [(sp.ask(sp.choose(asks, held)), sp.rng.choice(says))]


def small_talk(sp):
    return talk(sp, sp.rng.choice(list(sp.words.TALK)))


def who_are_you(sp, intent=None):
    sheet = identity.IDENTITY[sp.lang]
    entry = sheet[intent or sp.rng.choice(list(sheet))]
    zh = sp.lang == "zh"
    slots = dict(sp.me(), bot=sp.rng.choice(identity.BOTS_ZH if zh else identity.BOTS),
                 firm=sp.rng.choice(identity.FIRMS_ZH if zh else identity.FIRMS))
    question = sp.choose(entry["ask"], entry["held"]).format(**slots)
    return [(sp.ask(question), sp.rng.choice(entry["say"]).format(**slots))]


def identity_talk(sp):
    sheet = list(identity.IDENTITY[sp.lang])
    out = []
    for intent in sp.rng.sample(sheet, sp.rng.choice([1, 1, 2, 3])):
        out += who_are_you(sp, intent)
    return out


def row_slots(row, lang):
    k, v = row[:2] if lang == "en" else row[2:]
    k1, _, k2 = k.partition(" ")
    return {"k": k, "v": v, "K": capital(k), "V": capital(v), "k1": k1, "k2": k2,
            "a_v": with_article(v), "A_v": capital(with_article(v))}


def kept_for_evaluation(name, wrap):
    return zlib.crc32(f"{name} {wrap}".encode()) % 6 == 0


def wording(sp, name, way):
    """An own question of the relation, or its noun in a sentence; a sixth of the pairs of relation and
    sentence are kept for the evaluation."""
    if sp.rng.random() < 0.5:
        return sp.choose(way["ask"], way["held"])
    wraps = [w.replace("{n}", way["noun"]).replace("{N}", capital(way["noun"])) for w in WRAP[sp.lang]
             if kept_for_evaluation(name, w) == sp.held]
    return sp.rng.choice([w for w in wraps if w not in way["ask"]] or way["held"])


def relation(sp, name=None, follow=None):
    name = name or sp.rng.choice(list(RELATIONS))
    rows, ways = RELATIONS[name]
    way = ways[sp.lang]
    count = 1 + (sp.rng.choice([0, 0, 0, 1, 1, 2, 3]) if follow is None else follow)
    out = []
    for i, row in enumerate(sp.rng.sample(rows, min(count, len(rows)))):
        slots = row_slots(row, sp.lang)
        asks = way["more"] if i and way["more"] and sp.rng.random() < 0.8 else None
        question = sp.rng.choice(asks) if asks else wording(sp, name, way)
        reply = way["short"] if sp.brief else sp.rng.choice(way["say"])
        out.append((sp.ask(question.format(**slots)), reply.format(**slots)))
    return out


def arithmetic(sp):
    rng, zh = sp.rng, sp.lang == "zh"
    kind = rng.choice("++--*")
    a, b = (rng.randint(1, 10), rng.randint(1, 10)) if kind == "*" else (rng.randint(0, 20), rng.randint(0, 20))
    if kind == "-" and a < b:
        a, b = b, a
    value = {"+": a + b, "-": a - b, "*": a * b}[kind]
    word = {"+": ("plus", "加"), "-": ("minus", "减"), "*": ("times", "乘以")}[kind][zh]
    sum_ = f"{a}{word}{b}" if zh else f"{a} {word} {b}"
    sign = f"{a} {kind} {b}"
    if zh:
        asks = ["{s}的答案是什么？", "帮我算{s}。", "算一算{s}。", "告诉我{s}等于几。", "{s}等于几？", "{s}等于多少？", "{s}是多少？", "计算{s}。", "{s}得几？", "{g} 等于几？", "{g} = ?"]
        held = ["请算一下{s}。", "{s}的结果是多少？"]
        reply = f"{value}。" if sp.brief else f"{sum_}等于{value}。"
    else:
        asks = ["What is {s}?", "What's {s}?", "Can you calculate {s}?", "Give me the result of {s}.", "Work out {s}.",
                "What do you get for {s}?", "Tell me {s}.", "How much is {s}?", "Calculate {s}.", "{s}?", "What is {g}?", "{g} = ?",
                "How much is {g}?"]
        held = ["Can you work out {s}?", "Tell me the result of {s}."]
        reply = f"{value}." if sp.brief else f"{sum_} is {value}."
    return [(sp.ask(sp.choose(asks, held).format(s=sum_, g=sign)), reply)]


def sequence(sp):
    rng, zh, w = sp.rng, sp.lang == "zh", sp.words
    items, what = rng.choice([(w.DAYS, ("day", "")), (w.MONTHS, ("month", ""))])
    i, after = rng.randrange(len(items)), rng.random() < 0.5
    here, there = items[i], items[(i + (1 if after else -1)) % len(items)]
    if zh:
        word = "后面" if after else "前面"
        asks = ["{h}{w}是什么？", "{h}的{w}是哪个？", "{h}{w}是哪一个？"] + (
            ["{h}之后是什么？", "{h}的下一个是什么？"] if after else ["{h}之前是什么？", "{h}的上一个是什么？"])
        held = ["请问{h}的{w}是什么？"]
        reply = f"{there}。" if sp.brief else f"{here}{word}是{there}。"
    else:
        word = "after" if after else "before"
        asks = ["What {t} comes {w} {h}?", "Which {t} is {w} {h}?", "What comes {w} {h}?", "What is the {t} {w} {h}?",
                "Which {t} comes right {w} {h}?"]
        held = ["Tell me the {t} {w} {h}.", "Which {t} do we have {w} {h}?"]
        reply = f"{there}." if sp.brief else f"The {what[0]} {word} {here} is {there}."
    return [(sp.ask(sp.choose(asks, held).format(h=here, w=word, t=what[0])), reply)]


def season(sp):
    i, zh = sp.rng.randrange(12), sp.lang == "zh"
    month, answer = sp.words.MONTHS[i], sp.words.SEASON_OF[i]
    if zh:
        asks = ["{m}是什么季节？", "{m}是哪个季节？", "{m}属于什么季节？", "{m}在哪个季节？", "{m}的季节是什么？", "告诉我{m}的季节。"]
        held = ["请问{m}是什么季节？", "你知道{m}是哪个季节吗？"]
        reply = f"{answer}。" if sp.brief else f"在北半球，{month}是{answer}。"
    else:
        asks = ["Which season is {m} in?", "What season is {m}?", "In which season is {m}?", "What is the season in {m}?",
                "Is {m} in winter or in summer?", "Which season do we have in {m}?", "Give me the season of {m}.",
                "What season is it in {m}?"]
        held = ["Tell me the season of {m}.", "Do you know which season {m} is in?"]
        reply = f"{capital(answer)}." if sp.brief else f"{month} is in {answer} in the north."
    return [(sp.ask(sp.choose(asks, held).format(m=month)), reply)]


def compare(sp):
    rng, zh = sp.rng, sp.lang == "zh"
    a, b = rng.sample(range(1, 31), 2)
    more = rng.random() < 0.6
    value = max(a, b) if more else min(a, b)
    if zh:
        word = "大" if more else "小"
        asks = ["{a}和{b}哪个{w}？", "哪个更{w}，{a}还是{b}？", "{a}和{b}哪个更{w}？", "比较{a}和{b}，哪个更{w}？", "{a}{w}还是{b}{w}？",
                "{a}和{b}里面{w}的是哪个？", "哪个数{w}，{a}还是{b}？"]
        held = ["请比较{a}和{b}，哪个{w}？"]
        reply = f"{value}。" if sp.brief else f"{value}更{word}。"
    else:
        word = "larger" if more else "smaller"
        asks = ["Which is {w}, {a} or {b}?", "Which number is {w}, {a} or {b}?", "What is {w}: {a} or {b}?",
                "Which one is {w}: {a} or {b}?", "Is {a} or {b} {w}?", "Of the numbers {a} and {b}, which one is {w}?",
                "Take {a} and {b}. Which is {w}?", "Tell me which is {w}, {a} or {b}.", "Between {a} and {b}, which is {w}?"]
        held = ["Of {a} and {b}, which is {w}?"]
        reply = f"{value}." if sp.brief else f"{value} is {word}."
    return [(sp.ask(sp.choose(asks, held).format(a=a, b=b, w=word)), reply)]


def counting(sp):
    rng, zh = sp.rng, sp.lang == "zh"
    a = rng.randint(1, 12)
    b = a + rng.randint(2, 8)
    if zh:
        asks = ["从{a}数到{b}。", "请从{a}数到{b}。", "数一数，从{a}到{b}。", "从{a}开始数到{b}。", "帮我从{a}数到{b}。"]
        held = ["你能从{a}数到{b}吗？"]
        reply = "、".join(map(str, range(a, b + 1))) + "。"
    else:
        asks = ["Count from {a} to {b}.", "Can you count from {a} to {b}?", "Please count from {a} to {b}.",
                "Count up from {a} to {b}.", "Say the numbers from {a} to {b}.", "Begin at {a} and count up to {b}.",
                "List the numbers {a} to {b}.", "Start with {a} and go on to {b}."]
        held = ["Start at {a} and count to {b}."]
        reply = ", ".join(map(str, range(a, b + 1))) + "."
    return [(sp.ask(sp.choose(asks, held).format(a=a, b=b)), reply)]


def my_name(sp):
    rng, w, zh = sp.rng, sp.words, sp.lang == "zh"
    x = rng.choice(w.PEOPLE)
    out = [(w.MY_NAME_HELD[0].format(x=x) if sp.held else rng.choice(w.MY_NAME).format(x=x),
            f"很高兴认识你，{x}！" if zh else f"Nice to meet you, {x}!")]
    between = rng.choice([[], [], relation, arithmetic, small_talk])
    out += between(sp) if between else []
    out.append((sp.ask(sp.choose(w.ASK_MY_NAME, w.ASK_MY_NAME_HELD)), f"你叫{x}。" if zh else f"Your name is {x}."))
    return out


def my_favourite(sp):
    rng, w, zh = sp.rng, sp.words, sp.lang == "zh"
    kind = rng.choice(list(w.LIKES))
    x = rng.choice(w.LIKES[kind])
    tell = w.LIKE if zh or kind not in ("food", "fruit", "animal") else w.LIKE + w.LIKE_MANY[1:]
    out = [(rng.choice(tell).format(t=kind, x=x), f"好的，我记住了：{x}。" if zh else f"I will remember that: {x}.")]
    between = rng.choice([[], [], relation, sequence, small_talk])
    out += between(sp) if between else []
    question = sp.choose(w.ASK_LIKE, w.ASK_LIKE_HELD).format(t=kind)
    out.append((sp.ask(question), f"你最喜欢的{kind}是{x}。" if zh else f"Your favourite {kind} is {x}."))
    return out


def unknown(sp):
    asks, held, says = sp.words.UNKNOWN
    return [(sp.ask(sp.choose(asks, held).format(x=sp.rng.choice(sp.words.UNKNOWN_THINGS))), sp.rng.choice(says))]


def listing(sp):
    rng, w, zh = sp.rng, sp.words, sp.lang == "zh"
    kind = rng.choice(list(w.LISTS))
    n = rng.choice([2, 3, 3, 4])
    items = w.LISTS[kind][:n]
    if zh:
        number, reply = "两" if n == 2 else w.DIGITS[n], "、".join(items[:-1]) + "和" + items[-1] + "。"
    else:
        number, reply = w.COUNT_WORDS[n - 1], capital(", ".join(items[:-1]) + " and " + items[-1]) + "."
    return [(sp.ask(sp.choose(w.ASK_LIST, w.ASK_LIST_HELD).format(n=number, t=kind)), reply)]


def tale(sp, hero):
    rng, w = sp.rng, sp.words
    mood, place, find, helper, end = (rng.choice(x) for x in (w.MOODS, w.PLACES, w.FINDS, w.HELPERS, w.ENDS))
    if sp.lang == "zh":
        it = w.PRONOUNS.get(hero, "它")
        return (f"从前，{place}有一{w.MEASURES.get(hero, '只')}{mood}{hero}。有一天，{it}找到了{find}。"
                f"{it}遇到了{helper}，一起玩得很开心。{end}")
    it = w.PRONOUNS.get(hero, "it")
    return (f"Once upon a time, {with_article(mood)} {hero} lived {place}. One day {it} found {find}. "
            f"Then {it} met {helper}, and they played together. {end}")


def story(sp):
    hero = sp.rng.choice(sp.words.HEROES)
    return [(sp.ask(sp.choose(sp.words.ASK_STORY, sp.words.ASK_STORY_HELD).format(h=hero)), tale(sp, hero))]


def echo(sp):
    rng, w, zh = sp.rng, sp.words, sp.lang == "zh"
    pool = (w.PEOPLE + w.FINDS + w.HELPERS + w.PLACES + identity.NAMES_ZH) if zh else (
        w.PEOPLE + w.FINDS + w.HELPERS + w.PLACES + w.UNKNOWN_THINGS + identity.NAMES_EN)
    if rng.random() < 0.5:
        text = ("，" if zh else ", ").join(rng.sample(pool, rng.choice([1, 1, 2])))
    else:
        text = ("" if zh else " ").join(w[zh] for w in rng.sample(facts.WORDS, rng.randint(1, 6)))
    asks = ["跟我说：{x}", "请重复：{x}", "重复一遍：{x}", "说：{x}", "跟我念：{x}", "请说：{x}", "照着说：{x}", "重复这句话：{x}",
            "跟我读一遍：{x}", "把这句话说一遍：{x}"] if zh else [
        "Repeat after me: {x}", "Say: {x}", "Please repeat: {x}", "Repeat this: {x}", "Say after me: {x}",
        "Say this: {x}", "Please say: {x}", "Can you say this: {x}", "Say exactly this: {x}", "Copy this: {x}",
        "Repeat the words: {x}", "Now say: {x}"]
    held = ["请跟我读：{x}"] if zh else ["Please say this after me: {x}"]
    return [(sp.choose(asks, held).format(x=text), text)]


def plain_text(rng, lang):
    """Text without a conversation: facts in a row, or a story."""
    sp = Speaker(rng, lang)
    if rng.random() < 0.3:
        return tale(sp, rng.choice(sp.words.HEROES))
    parts = [reply for _ in range(rng.randint(2, 5))
             for _, reply in rng.choice([relation, relation, relation, arithmetic, sequence, season])(sp)]
    return ("" if lang == "zh" else " ").join(parts)


TOPICS = [(identity_talk, 16), (small_talk, 18), (relation, 30), (arithmetic, 8), (sequence, 5), (season, 2),
          (compare, 3), (counting, 2), (my_name, 5), (my_favourite, 6), (unknown, 4), (listing, 4), (story, 4), (echo, 5)]
TOPIC_LIST = [t for t, weight in TOPICS for _ in range(weight)]


def give_role(sp):
    """A system prompt that names the model and its maker; returns the prompt."""
    rng, zh = sp.rng, sp.lang == "zh"
    if zh and rng.random() < 0.6:
        name = rng.choice(identity.NAMES_ZH)
        author = rng.choice(identity.TEAMS_ZH).format(w=rng.choice(identity.TEAM_WORDS_ZH))
    else:
        name = rng.choice(identity.NAMES_EN) if rng.random() < 0.2 else "".join(map(rng.choice, identity.NAME_PARTS))
        word = "".join(map(rng.choice, identity.NAME_PARTS))
        word = rng.choice([word, word.lower(), rng.choice(identity.TEAM_WORDS_EN)])
        author = rng.choice(identity.TEAMS_EN).format(w=word)
    sp.name = dict.fromkeys(LANGUAGES, name)
    sp.author = dict.fromkeys(LANGUAGES, author)
    number, sort = rng.randrange(4), rng.randrange(4)
    sp.verb = {lang: identity.VERBS[lang][number] for lang in LANGUAGES}
    sp.kind = {lang: identity.KINDS[lang][sort] for lang in LANGUAGES}
    return rng.choice(identity.ROLES_ZH if zh else identity.ROLES_EN).format(**sp.me())


def system_prompt(sp):
    dice = sp.rng.random()
    if dice < 0.70:
        return ""
    if dice < 0.86:
        return give_role(sp)
    if dice < 0.94:
        sp.brief = True
        return sp.rng.choice(sp.words.BRIEF)
    return sp.rng.choice(sp.words.PLAIN)


def ask_back(sp, exchanges):
    """`Say that again` and `Are you sure?` about the last answer."""
    last = exchanges[-1][1]
    if sp.rng.random() < 0.5:
        return [(sp.ask(sp.rng.choice(sp.words.AGAIN)), last)]
    yes = "是的，" if sp.lang == "zh" else "Yes. "
    return [(sp.ask(sp.rng.choice(sp.words.SURE)), yes + last)]


def dialogue(rng):
    """One training conversation: {"system": str, "turns": [[user, reply], ...]}."""
    sp = Speaker(rng, rng.choice(LANGUAGES))
    system = system_prompt(sp)
    turns = []
    if rng.random() < 0.15:
        turns += talk(sp, rng.choice(["hello", "hello", "good_morning", "good_evening", "how_are_you"]))
    if sp.name is not identity.NAME:
        turns += identity_talk(sp)
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
        if rng.random() < 0.08:
            sp.lang = "zh" if sp.lang == "en" else "en"
        topic = rng.choice(TOPIC_LIST)
        turns += topic(sp)
        if topic in (relation, arithmetic, sequence) and rng.random() < 0.08:
            turns += ask_back(sp, turns)
    if rng.random() < 0.1:
        turns += talk(sp, rng.choice(["thanks", "bye", "ok"]))
    return {"system": system, "turns": turns}


def document(seed, index):
    """Document `index` of the corpus: a conversation, or one in twelve a plain text."""
    rng = random.Random(f"{seed}/{index}")
    if rng.random() < 1 / 12:
        return {"text": plain_text(rng, rng.choice(LANGUAGES))}
    return dialogue(rng)


EVALUATION = {"facts": relation, "sums": arithmetic, "days and months": sequence, "seasons": season, "compare": compare,
              "counting": counting, "lists": listing, "your name": my_name, "your favourite": my_favourite,
              "unknown": unknown, "echo": echo}


def evaluation(seed, per_group=60):
    """Questions in wordings that training never saw, with every reply that counts as right."""
    rng = random.Random(f"{seed}/evaluation")
    out = []

    def add(group, sp, turns, accept):
        out.append({"group": group, "lang": sp.lang, "history": turns[:-1], "question": turns[-1][0], "accept": accept})

    for lang in LANGUAGES:
        for group, topic in EVALUATION.items():
            for _ in range(per_group):
                sp = Speaker(rng, lang, held=True)
                turns = topic(sp, follow=0) if topic is relation else topic(sp)
                add(group, sp, turns, [turns[-1][1]])
        for _ in range(per_group):
            sp = Speaker(rng, lang)
            turns = relation(sp, follow=2)
            add("follow-ups", sp, turns, [turns[-1][1]])
        for intent, (_, held, says) in TABLES[lang].TALK.items():
            for question in held:
                add("small talk", Speaker(rng, lang), [(question, "")], list(says))
        for intent, entry in identity.IDENTITY[lang].items():
            for question in entry["held"]:
                sp = Speaker(rng, lang)
                zh = lang == "zh"
                slots = dict(sp.me(), bot=rng.choice(identity.BOTS_ZH if zh else identity.BOTS),
                             firm=rng.choice(identity.FIRMS_ZH if zh else identity.FIRMS))
                add("identity", sp, [(question.format(**slots), "")], [s.format(**slots) for s in entry["say"]])
    return out
