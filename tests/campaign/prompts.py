"""Odd prompts, through both doors of sample.py: `prompt=` on the command line and `prompts=` out of a file.

Every one comes out of the configuration to the letter and is drawn, with its caption on the grid, its place in
drawing.json and a plain file name,
    or is refused by one line. `python tests/campaign/prompts.py` tries them all in one
process, prints a table, and exits 1 if one is not right.
"""

from __future__ import annotations

import io
import json
import random
import re
import signal
import string
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src")]

from PIL import Image

from campaign.common import Result, table
from hydra_app import main
from t2i.checkpoint.building import load
from t2i.cli.app import is_for_people
from t2i.generation import text_to_image
from t2i.generation.clip_guided.prompts import prompt_targets

LIMIT = 10  # seconds of computing a prompt
HIGHEST = 8 + 128 + 4 * 17 + 8  # pixels of a grid of one picture
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

SCRIPTS = [
    "كلب أحمر يجلس على كرسي أزرق", "שלום 12 עולם (abc)", "नमस्ते दुनिया, लाल कुत्ता", "一只红色的狗坐在椅子上",
    "日本語のキャプション", "빨간 개가 파란 의자에 앉아 있다", "ไทย ภาษาไทย", "தமிழ் மொழி", "తెలుగు భాష",
    "ಕನ್ನಡ ಭಾಷೆ", "മലയാളം", "ગુજરાતી", "ਪੰਜਾਬੀ", "বাংলা ভাষা", "ଓଡ଼ିଆ", "සිංහල", "ລາວ", "မြန်မာ", "ខ្មែរ", "བོད་ཡིག",
    "ქართული", "Հայերեն", "አማርኛ", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ", "ᠮᠣᠩᠭᠣᠯ", "Ελληνικά", "Русский", "Tiếng Việt", "ܣܘܪܝܝܐ", "ދިވެހި",
    "𐤀𐤁𐤂", "𓀀𓀁𓂀", "𒀀𒀁", "𝕗𝕣𝕒𝕜𝕥𝕦𝕣", "ꦧꦱꦗꦮ", "ﷺ ﷽", "İstanbul ıI", "ﬁ ﬂ ﬀ", "ẞ ß ſ",
]
EMOJI = [
    "😀", "a cat 🐱 and a dog 🐶", "👩‍🚀", "👨‍👩‍👧‍👦 at home", "🇫🇷🇯🇵", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "❤️", "☂",
    "☂️", "5️⃣", "👍🏽", "🧑🏽‍🤝‍🧑🏻", "🫠", "🐱" * 60, "👩‍🚀" * 40, "‍", "️",
]
WORDS = [
    "true", "false", "null", "None", "???", "nan", "inf", "-inf", "~", "yes", "no", "on", "off", "0", "-1", "3",
    "3.14", "1e5", "0x10", "0b1", "0o7", "1_000", "[]", "{}", "[a,b]", "{a:b}", "[", "]", "{", "}", "()",
    "__text_0__", "__text_1__", "__text_2__", "__class__", "_target_", "_target_=os.system", "prompt",
    "prompt=prompt=a", "a,b,c", "a dog, a cat, and 3 mice", "choice(a,b)", "range(1,5)", "glob(*)", "interval(0,1)",
    "sort(3,1,2)", "shuffle(a)", "tag(a,b)", "int(3)", "str(true)", "key=value", "a=b=c", "+a=1", "++a=1", "~a",
    "a@b:c", "a/b=c", "a.b.c", "-m", "--help", "-", "--", "-c job", "hydra.run.dir=/tmp/x", "ckpt=/etc/passwd", "n=0",
    "a\\,b", "\\", "\\\\", "\\'", "a:b", "a: b", "at 10:30", "a | b", "a:2 | b:-1", "a:nan", "image:/etc/passwd",
    "image:", ":", "::", "|", "||", "a:1:2:3",
]
INTERPOLATIONS = [
    "${oc.env:HOME}", "$HOME", "${HOME}", "$(id)", "`id`", "${ckpt}", "${prompt}", "${..a}", "${oc.env:NOPE}",
    "${repo:}", "${oc.decode:1}", "${oc.create:{a:1}}", "${", "$", "$$", "${}", "\\${a}", "${a", "a ${b} c", "%HOME%",
    "%s", "%(a)s", "{0}", "{a}", "{{a}}", "{0!r}", "!ls", "*", "?", "[a-z]", "~root", "#a", "a # b", "&", "<a>",
    ">out", "a;b", "a&&b",
]
QUOTES = [
    "'", '"', "''", '""', "'''", '"""', "'a", 'a"', "'a'", '"a"', "a 'b' c", "a \"b\" c", "it's", "rock'n'roll",
    '"a" "b"', "“a”", "‘a’", "«a»", "„a“", "`a`", "'a\"b'", "\\'a\\'", '\\"a\\"', "'\"'\"'",
]
PATHS = [
    "/etc/passwd", "../../etc/passwd", "./a", "/", "//", ".", "..", "...", "~/.ssh", "C:\\Windows", "\\\\host\\share",
    "con", "nul.txt", "file:///etc/passwd", "https://example.org/a.png", "a/b/c", "a\\b", ".hidden", "a.png",
    "drawing.json", "grid", "000-a-0.png", "a" * 300 + "/b", "a b.txt", "/dev/stdin", "/dev/full", "|cat",
]
CODE = [
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "a\rb", "a\bb", "<script>alert(1)</script>",
    "<b>a</b>", "&lt;a&gt;", "'; DROP TABLE a; --", '{"a": 1}', '["a"]', "a\\nb", "\\x41", "\\u0041", "\\N{BULLET}",
    "<!-- a -->", "]]>", "<|endoftext|>", "<|startoftext|>", "<s>", "</s>", "[PAD]", "[UNK]", "<start_of_text>",
    "#!/bin/sh", "import os", "a=1;b=2", "\ufeffa", "a\ufeff", "\ufffd", "\ufffe", "\uffff", "a|b|c", "| a | b |",
    "**a**", "[a](b)", "$\\alpha$",
]
BREAKS = [
    "a\nb", "a\r\nb", "a\n\nb", "\na", "a\n", "a\tb", "\ta", "a\x0bb", "a\x0cb", "a\x1cb", "a\x1db", "a\x1eb",
    "a\x85b", "a\u2028b", "a\u2029b", "a\n" * 40, "a\r" * 40,
]
ENDLESS = [
    "x", "x ", "X", "i", "W", "中", "ש", "م", "क", "é", "e\u0301", "\u0301", "😀", "👩\u200d", "\u200d", "\u202e", "-",
    ".", "/", "$", "'", "a\n", "\x1b", "\u2028", "﷽", "🇫", "\u3164", "0", "(", "[", "a=", "${", "\\", ",",
]
LONG = [letters * 10_000 for letters in ENDLESS]
LONG += [" ".join(["a red circle above a blue square"] * 400), " " * 10_000 + "a", "a" + " " * 10_000 + "b",
         "a" + "\u0301" * 10_000, "".join(map(chr, range(0x4E00, 0x5E00)))]


def letters(*kinds: str) -> list[str]:
    return [letter for letter in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(letter) in kinds]


def prompts() -> list[tuple[str, str]]:
    """Every (kind, prompt)."""
    spaces, formats = letters("Zs", "Zl", "Zp"), letters("Cf")
    codes = [code for code in range(0xA1, sys.maxunicode + 1, 4127) if not 0xD800 <= code < 0xE000]
    signs = [text for sign in string.punctuation for text in (sign, sign * 2, f"a{sign}b", f"{sign}a {sign}")]
    found = {
        "scripts": SCRIPTS, "emoji": EMOJI, "words of the grammar": WORDS, "interpolations": INTERPOLATIONS,
        "quotes": QUOTES, "paths": PATHS, "code": CODE, "line breaks": BREAKS, "long": LONG, "punctuation": signs,
        "planes": [f"a {chr(code)} b" for code in codes],
        "plane ends": [chr(plane * 0x10000 + low) for plane in range(17) for low in (0x21, 0xFFFD, 0xFFFE, 0xFFFF)],
        "controls": [f"a{letter}b" for letter in letters("Cc")],
        "formats": [f"a{letter}b" for letter in formats] + formats[:40],
        "spaces": ["", " ", *spaces, *(f"{space}a{space}b{space}" for space in spaces), "\t", "\n", "\r\n", " \n "],
        "surrogates": [*map(chr, range(0xD800, 0xE000, 97)), "a \udcff b", "\udce9t\udce9", "\ud83d\ude00"],
        "marks": [f"a{letter}b" for letter in letters("Mn", "Me", "Mc")[::40]] + ["a" + "\u0301" * n for n in (1, 50)],
        "fuzz": list(fuzz(220)),
    }
    return [(kind, text) for kind, texts in found.items() for text in texts]


def fuzz(n: int) -> Iterator[str]:
    rng = random.Random(0)
    pools = [
        string.ascii_letters, string.punctuation, string.whitespace, string.digits, "${}[]()=,:'\"\\~+@", "中文日本",
        "עברית", "\u0301\u200d\u202e\ufe0f", "😀👩🚀", "\x00\x1b\x07\x85",
    ]
    for _ in range(n):
        yield "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 60)))


class Hung(BaseException):
    pass


@contextmanager
def limited() -> Iterator[None]:
    """Raises Hung after LIMIT seconds."""
    def stop(*_: Any) -> None:
        raise Hung

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def command(words: Sequence[str], model: Any) -> tuple[int, str, str, list[str | None]]:
    """Exit code, output and errors of `sample.py` with an opened model, and the prompts that it was asked to draw."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    asked: list[str | None] = []

    def draw(config: dict[str, Any], overrides: list[str]) -> Any:
        asked.append(config["prompt"])
        return text_to_image.run(config, model)

    sys.argv = ["sample.py", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err), limited():
            main("sample", draw)
    except SystemExit as ended:
        return int(ended.code or 0), out.getvalue(), err.getvalue(), asked
    finally:
        sys.argv = argv
    raise AssertionError("main returned")


def refusable(text: str) -> bool:
    """What cannot be drawn: nothing to read, or no text."""
    return not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text)


def looked(out: Path, wanted: Sequence[str]) -> str:
    """What is wrong with a drawing of these prompts, one picture each; "" for nothing."""
    record = json.loads((out / "drawing.json").read_text(encoding="utf-8"))
    found = [entry["prompt"] for entry in record["pictures"]]
    if found != list(wanted) or record["request"]["prompts"] != list(wanted):
        return f"drawing.json has {ascii(found)[:200]}"
    names = [entry["file"] for entry in record["pictures"]]
    if strange := [name for name in names if not re.fullmatch(r"\d{3}-[a-z0-9-]{1,40}-0\.png", name)]:
        return f"file names {strange[:3]}"
    if missing := {*names, "drawing.json", "grid.png"} ^ {path.name for path in out.iterdir()}:
        return f"files {sorted(missing)[:3]}"
    for name in names:
        Image.open(out / name).load()
    page = Image.open(out / "grid.png")
    page.load()
    return f"a grid of {page.size}" if len(names) == 1 and page.height > HIGHEST else ""


def one_line(err: str) -> str:
    """What is wrong with a refusal; "" for nothing."""
    said = [line for line in err.split("\n") if line]
    if not said:
        return "silent"
    if len(said) > 1 or not said[0].startswith("error: ") or len(said[0]) > 1000:
        return f"{len(said)} lines, {len(said[-1])} letters: {ascii(said[-1])[:200]}"
    return ""


def on_command_line(kind: str, number: int, text: str, folder: Path, ckpt: str, model: Any) -> Result:
    """One prompt by `prompt=`."""
    name, out = f"prompt= {number:04} {text[:20]!a}", folder / f"{number:04}"
    words = [f"ckpt={ckpt}", f"prompt={text}", "n=1", f"out={out}"]
    try:
        code, said, err, asked = command(words, model)
        if not refusable(text) and asked not in ([], [text]):
            return Result(name, kind, "wrong", f"composed as {ascii(asked)[:200]}")
        if RAW.search(said + err):
            return Result(name, kind, "wrong", f"raw on the terminal: {ascii(said + err)[:200]}")
        if code == 0:
            wrong = "drawn all the same" if refusable(text) else looked(out, [text.strip()])
        elif refusable(text):
            wrong = one_line(err) or ("" if err.startswith("error: prompt") else f"names no key: {ascii(err)[:200]}")
        else:
            wrong = f"refused: {ascii(err)[:200]}"
        return Result(name, kind, "silent" if wrong == "silent" else "wrong" if wrong else "right", wrong)
    except Hung:
        return Result(name, kind, "hung", f"{LIMIT} s")
    except Exception:  # whatever it is, it is the outcome
        return Result(name, kind, "traceback", traceback.format_exc()[-400:])


def guided(kind: str, number: int, text: str) -> Result:
    """One prompt as guided drawing reads it, with weights."""
    name = f"guide {number:04} {text[:20]!a}"
    try:
        with limited():
            prompt_targets(text)
    except ValueError as error:
        wrong = one_line(f"error: {error}") if is_for_people(error) else "not ours: " + traceback.format_exc()[-300:]
        wrong = wrong or ("raw on the terminal" if RAW.search(str(error)) else "")
        return Result(name, kind, "wrong" if wrong else "right", wrong)
    except Hung:
        return Result(name, kind, "hung", f"{LIMIT} s")
    except Exception:  # whatever it is, it is the outcome
        return Result(name, kind, "traceback", traceback.format_exc()[-400:])
    return Result(name, kind, "right")


def out_of_files(chosen: Sequence[tuple[str, str]], folder: Path, ckpt: str, model: Any) -> Iterator[Result]:
    """Prompts by `prompts=`, fifty a file, with the line ends of one system and of the other."""
    fitting = [(kind, text) for kind, text in chosen if "\n" not in text and not refusable(text)]
    for start in range(0, len(fitting), 50):
        some = fitting[start : start + 50]
        path, out = folder / f"prompts-{start}.txt", folder / f"file-{start}"
        end, mark = ("\r\n", "\ufeff") if start % 100 else ("\n", "")
        path.write_bytes((mark + end.join(text for _, text in some) + end).encode())
        outcome, detail = "right", ""
        try:
            code, said, err, _ = command([f"ckpt={ckpt}", f"prompts={path}", "n=1", f"out={out}"], model)
            detail = looked(out, [text.strip() for _,
            text in some]) if code == 0 else f"refused: {ascii(err)[:200]}"
            detail = detail or ("raw on the terminal" if RAW.search(said + err) else "")
            outcome = "wrong" if detail else "right"
        except Hung:
            outcome, detail = "hung", f"{LIMIT} s"
        except Exception:  # whatever it is, it is the outcome
            outcome, detail = "traceback", traceback.format_exc()[-400:]
        for k, (_, text) in enumerate(some):
            yield Result(f"prompts= {start + k:04} {text[:20]!a}", "prompts out of files", outcome, detail)


def short() -> list[tuple[str, str]]:
    """A prompt or two of every kind."""
    found = prompts()
    kinds = dict.fromkeys(kind for kind, _ in found)
    return [pair for kind in kinds for pair in [p for p in found if p[0] == kind][::40][:2]]


def run(folder: Path, chosen: Sequence[tuple[str, str]] | None = None) -> list[Result]:
    """Every prompt, or those that are `chosen`, through both doors, with a prior that is made in `folder`."""
    from tests.generation.clip_guided.test_settings import make_parts

    chosen = prompts() if chosen is None else chosen
    ckpt = make_parts(folder / "parts").prior
    model = load(ckpt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captions that are too long for the text encoder
        found = [on_command_line(kind, i, text, folder, ckpt, model) for i, (kind, text) in enumerate(chosen)]
        found += out_of_files(chosen, folder, ckpt, model)
        found += [guided("weights of guided drawing", i, text) for i, (_, text) in enumerate(chosen)]
    return found


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        results = run(Path(place))
    print(table(results))
    wrong = [result for result in results if result.outcome not in ("right", "skipped")]
    print("".join(f"\n{r.outcome}: {r.group}: {r.name}: {r.detail}" for r in wrong))
    print(f"\n{len(results)} cases, {len(wrong)} not right, {time.monotonic() - started:.0f} s")
    sys.exit(1 if wrong else 0)
