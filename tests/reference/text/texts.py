# SPDX-License-Identifier: Apache-2.0
"""Texts, written for these tests, that tokenizers are compared on."""
import random

SENTENCES = [
    "Hello! I am a small assistant, and I don't know much; it's what you'd expect, isn't it?",
    "THEY'RE LOUD, WE'LL SEE. I'D SAY SO. She's gone; he'd've known.",
    "The quick brown fox jumps over the lazy dog, 3 times in 2024, for $1,299.95 (about 50% off).",
    "你好，世界！我是一个乐于助人的小助手。今天是2024年11月24日，星期日。",
    "請問您是誰？我想學習人工智慧與機器學習。",
    "こんにちは、世界。カタカナとひらがなと漢字が混ざった文です。",
    "안녕하세요 세계! 오늘 날씨가 정말 좋네요.",
    "Привет, мир! Как дела? Сегодня хорошая погода.",
    "مرحبا بالعالم! كيف حالك اليوم؟ ١٢٣٤٥",
    "שלום עולם, מה שלומך היום?",
    "नमस्ते दुनिया, आप कैसे हैं? क्षत्रिय १२३",
    "สวัสดีชาวโลก วันนี้อากาศดี",
    "Xin chào thế giới! Tiếng Việt có dấu thanh.",
    "Γειά σου Κόσμε! Τι κάνεις σήμερα;",
    "Größe, Maße, Übergang, naïve café, œuvre, smörgåsbord, Łódź, İstanbul, ŉ, ſ, ß, ẞ.",
    "ქართული ენა, հայերեն լեզու, አማርኛ, ភាសាខ្មែរ, ພາສາລາວ, བོད་སྐད།",
    "Emoji: 😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ❤️‍🔥 1️⃣ 🫨 🩷 🪿",
    "ZWJ\u200dand ZWNJ\u200c, BOM\ufeff, soft\u00adhyphen, NBSP\u00a0here, ideographic\u3000space, \u180e, \u2028line",
    "Combining: e\u0301 a\u0323\u0302 q\u0323\u0307 \u1100\u1161\u11a8 \uac00\u11a8 \u0958 \u2126 \u212b \u0344 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉",
    "Maths: ∀x∈ℝ, x² ≥ 0; ½ + ⅓ = ⅚; 𝒜𝓑𝔠 𝟙𝟚𝟛; √2 ≈ 1.41421; ⅷ ⑨",
    "def square(x):\n    return x ** 2  # comment\n\n\nclass A(B):\n\tdef __init__(self, *args, **kwargs):\n\t\tpass\n",
    "int main(void)\r\n{\r\n    for (int i = 0; i < 10; i++)\r\n        printf(\"%d\\n\", a[i] & 0xff);\r\n}\r\n",
    "<div class=\"x\">a &amp; b</div>\n<!-- note -->\n{\"key\": [1, 2.5e-3, null, true]}",
    "SELECT * FROM t WHERE a = 'it''s' AND b <> 10; -- all",
    "https://example.org/path/to?q=a%20b&x=1#top user.name+tag@example.com C:\\Temp\\new.txt ~/.config",
    "   leading, trailing   ", "\n\n\n   \n\t \n x \n", "\t\t\ttabs\t \ty", "a\r\r\nb\n\r c  \n\n  d",
    "trailing spaces   \n   then   more    ", " ", "  ", "\n", "\r\n", "",
    "\x00\x01\x02\x1f\x7f\x80\x85\x9f", "x\x85y\x0bz\x0cw",
    "<｜begin▁of▁sentence｜>You are kind.<｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜>",
    "a<｜User｜><｜User｜> <｜Assistant｜>\n<｜User｜", "<<｜User｜>｜><｜Us <｜tool▁sep｜>x<|EOT|>",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>", "<think>\nwell\n</think>\n\nyes",
    "key keyword monkey key, key", "x <pad> y <mask>z  <mask>  w",
]


def texts() -> list[bytes]:
    r = random.Random(20241124)
    out = [s.encode() for s in SENTENCES]
    out += [(" " * 257).encode(), ("\n" * 65).encode(), b"1234567890" * 40, b"ab" * 500, b"z" * 999,
            "哈".encode() * 300, "é".encode() * 200, "👍".encode() * 64, (" a" * 300).encode()]
    blocks = [(0x20, 0x7f), (0xa0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700),
              (0x900, 0xa00), (0x1100, 0x1200), (0x1e00, 0x2000), (0x2000, 0x2100),
              (0x2190, 0x2600), (0x3000, 0x3100), (0x4e00, 0x9fff), (0xac00, 0xd7a3),
              (0xf900, 0xfb00), (0xff00, 0xfff0), (0x1f300, 0x1faff), (0x0, 0x20), (0x80, 0xa0),
              (0x1d400, 0x1d800), (0x10000, 0x11000)]
    glue = [" ", "  ", "\n", " \n", "\r\n", "'s", "'LL", "7", "<｜User｜>", "<pad>", "key"]
    for _ in range(60):
        s = ""
        for _ in range(r.randint(2, 9)):
            a, b = r.choice(blocks)
            s += "".join(chr(r.randrange(a, b)) for _ in range(r.randint(1, 5)))
            if r.random() < 0.6:
                s += r.choice(glue)
        out.append(s.encode())
    out += [b"\xff\xfeabc\xe4\xbd\xed\xa0\x80\xf0\x9f\x98z\xc0\xafq\xf4\x90\x80\x80", b"\xe2\x82",
            b"ok \xe2\x82\xac \xe2\x82 \xf0\x9f", b"\x80\x80\x80", b"\xf8\x88\x80\x80\x80"]
    for _ in range(24):
        out.append(bytes(r.randrange(256) if r.random() < 0.5
                         else r.choice(b"ab \xe4\xbd\xa0\xf0\x9f\x98\x80\n")
                         for _ in range(r.randint(1, 40))))
    return out
