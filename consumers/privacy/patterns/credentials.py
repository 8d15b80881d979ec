"""Keys, passwords, tokens and cookies, by their form, by the name before them, and by their randomness."""

import re
from collections import Counter
from itertools import pairwise
from math import log2

from retuned.consumers.privacy.patterns import FIRST, Mark

_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_URL_CREDENTIALS = re.compile(r"(?<=://)(?![<])[^\s/?#@:\"'<>]{0,256}:[^\s/?#@\"'<>]{1,256}(?=@)")

# Forms that issuers chose to be recognisable.
_KEY = re.compile(
    r"""(?<![A-Za-z0-9])(?:
      sk-[A-Za-z0-9_\-]{16,}+                                        # OpenAI and others with its form
    | (?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])                       # AWS
    | gh[pousr]_[A-Za-z0-9]{20,}+ | github_pat_[A-Za-z0-9_]{20,}+    # GitHub
    | xox[a-z]-[A-Za-z0-9%\-]{10,}+ | xapp-[A-Za-z0-9\-]{10,}+       # Slack
    | AIza[0-9A-Za-z_\-]{30,}+ | ya29\.[0-9A-Za-z_\-]{20,}+          # Google
    | hf_[A-Za-z0-9]{20,}+ | gl[a-z]{2,5}-[A-Za-z0-9_\-]{16,}+       # Hugging Face, GitLab
    | [srp]k_(?:live|test)_[A-Za-z0-9]{10,}+ | whsec_[A-Za-z0-9]{16,}+  # Stripe
    | SG\.[A-Za-z0-9_\-]{16,}+\.[A-Za-z0-9_\-]{16,}+                 # SendGrid
    | (?:npm|pypi|dckr_pat|dop_v1|shpat|shpss|hvs|gsk|pplx|r8|nvapi|xai|lin_api|sbp|key|figd|glsa|ATATT3|EAA)
      (?:[_.\-][A-Za-z0-9_.\-]{0,4})?[A-Za-z0-9_\-]{24,}+            # many others
    | [0-9]{8,10}:AA[A-Za-z0-9_\-]{30,}+                             # Telegram
    | (?<![_\-])eyJ[A-Za-z0-9_\-]{8,}+\.[A-Za-z0-9_\-]{8,}+(?:\.[A-Za-z0-9_\-]*+){0,3}  # JSON web tokens
    )""",
    re.VERBOSE,
)
_WEBHOOK = re.compile(
    r"(?P<kept>(?:hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/))[A-Za-z0-9/_\-]{20,}+"
)
_AUTHORIZATION = re.compile(
    r"(?P<kept>(?<![A-Za-z0-9_])(?:bearer|basic|digest|apikey|token)[ \t]{1,4})(?=[^\s\"']{0,64}[0-9=])"
    r"[A-Za-z0-9._~+/=\-]{12,}+",
    re.I,
)
_COMMAND_LINE = re.compile(
    r"(?P<kept>(?<![\w-])(?:(?:curl|wget|http)\b[^\n|;]{0,120}?[ ]-u|--user|--proxy-user)[ =]?[\"']?)"
    r"(?![<])[^\s:\"']{1,64}:[^\s\"']{1,128}"
)

_PASSWORD = (
    r"(?:pass phrase|pass?words?|passwd|passwort|passcode|kennwort|pwd?|mot de passe|mdp|contrase[nñ]a|senha"
    r"|wachtwoord|has[lł]o|heslo|l[oö]senord|adgangskode|salasana|[sş]ifre|m[aậ]t kh[aẩ]u|κωδικ[οό]ς|пароль"
    r"|סיסמה|كلمة المرور|पासवर्ड|รหัสผ่าน|パスワード|密[码碼]|비밀번호)"
).replace(" ", "[ _-]?")
_SECRET = (
    rf"(?:{_PASSWORD}|credentials?|secret|token"
    r"|(?:api|access|secret|auth|account|private|encryption|license)[_\- ]?key)"
)
# Values of these names are not secret.
_ABOUT = (
    r"(?!s?[_.\- ]?(?:at|count|created|changed|error|expir[a-z]{1,6}|field|format|hint|id|label|length|limit|name|on"
    r"|policy|reset|status|strength|ttl|type|updated|ur[il]|usage|version)(?![a-z]))"
)
_IS = r"(?:[:=]|->|=>|\b(?:is now|is|was|ist|lautet|es|est|é|è|to jest)\b|は|是|[는은])"
_CJK = r"\u3000-\u9fff\uac00-\ud7a3"  # a value ends where a sentence continues
_NO_TEMPLATE = r"(?!\$[{(]|\{[{a-z_]|%\(|[*•]{3})"  # not a placeholder in a template
# A value is a secret only if it has a digit or a sign: "password: please reset it" is not.
_NAMED = re.compile(
    rf"(?P<kept>(?:{FIRST}{_SECRET}|(?<=_)pass(?==)){_ABOUT}(?:[_.-][a-z]{{1,12}}|(?-i:[A-Z])[a-z]{{1,11}}){{0,2}}"
    rf"(?:\\?[\"'])?[ \t]{{0,3}}{_IS}[ \t]{{0,3}}(?:\\?[\"'])?)"
    rf"{_NO_TEMPLATE}(?=[^\s\"',;]{{0,64}}[0-9]|[^\s\"',;<>]{{1,64}}[#$%&*+=@^~!][^\s\"',;])[^\s\"',;\\<{_CJK}]{{6,}}+",
    re.I,
)
# A quoted name and a quoted value, as in JSON: any value.
_QUOTED = re.compile(
    rf"(?P<kept>{FIRST}(?:{_PASSWORD}|pass|secret|(?:access|auth|bearer|device|id|refresh|reset|session)[_-]?token)"
    rf"\\?[\"'][ ]?:[ ]?(?P<quote>\\?[\"'])){_NO_TEMPLATE}(?=[^\s\"']{{0,64}}[^\W_])"
    r"(?:(?!(?P=quote))[^\s<>]){4,256}(?=(?P=quote))",
    re.I,
)
_FLAG = re.compile(
    rf"(?P<kept>(?<![\w-])--?(?:[a-z]{{1,12}}-){{0,2}}{_SECRET}[ ][\"']?)"
    r"(?=[^\s\"']{0,64}[0-9])[^\s\"'<]{6,}+",
    re.I,
)
_PIN = re.compile(
    rf"(?P<kept>{FIRST}(?:(?:cv[vc]2?|otp|(?-i:TAN))[ ]|(?:pin|otp|(?-i:TAN)|cv[vc]2?|passcode"
    r"|(?:security|verification|confirmation|one[ _-]?time|access|unlock)[ _.-]?(?:code|pin|password|passcode))"
    r"(?:[ _.-]?(?:code|number|nummer))?(?:[ ][^\W\d]{1,12}){0,4}"
    r"[\"']?[ ]?(?:[:=]|\b(?:is now|is|was|ist|lautet|es|est))[ ]{0,2}[\"']?))[0-9]{3,8}(?![0-9A-Za-z]|[.,][0-9])",
    re.I,
)

# Parameters of URLs and matrix parameters (;jsessionid=).
_SESSION_NAMES = (
    r"j?session(?:[_-]?id|[_-]?token)?|phpsessid|jsessionid|aspsessionid\w{0,12}|s?sid|cfid|cftoken|connect\.sid"
)
_PARAMETER = re.compile(
    rf"(?P<kept>[?&;](?:(?P<session>{_SESSION_NAMES})|(?:[a-z]{{1,12}}[_-]){{0,3}}(?:token|sig|signature|auth|apikey|api[_-]key"
    r"|secret|credential|password|pwd|pass|jwt|otp|ticket|hmac|access[_-]key|subscription-key|key|code|state|nonce))=)"
    r"(?!<[A-Z\x00])(?=[^&#\s\"'<>;]{0,64}[0-9])(?P<value>[^&#\s\"'<>;]{8,}+)",
    re.I,
)
_PAIR = r"[\w!#$%&'*.^`|~+\-]{1,64}=[^\s;,\"'<>]{1,4096}"
_COOKIE = re.compile(
    r"(?P<kept>(?<![A-Za-z])(?:(?P<set>set-)?cookie|document\.cookie)"
    r"(?:\\?[\"'])?[ \t]{0,3}[:=][ \t]{0,3}(?:\\?[\"'])?)"
    rf"(?P<first>{_PAIR})(?P<others>(?:;[ ]?{_PAIR}){{0,60}})",
    re.I,
)

# Random tokens without a name. Hexadecimal ones are ignored: most are hashes of commits and images.
_TOKEN = re.compile(r"(?<![A-Za-z0-9_+/\-])[A-Za-z0-9_+/\-]{20,128}+(?![A-Za-z0-9_+/\-])={0,2}")
_ALNUM = re.compile(r"[A-Za-z0-9]{20}")
_NUMBERS = re.compile("[0-9]{1,128}+")
_CLASSES = str.maketrans(
    {chr(c): "a" for c in range(97, 123)} | {chr(c): "A" for c in range(65, 91)} | {chr(c): "0" for c in range(48, 58)}
)
_IDS = re.compile(  # names that services give to their objects, and images
    r"(?:call|chatcmpl|cmpl|msg|run|thread|resp|req|toolu|asst|file|step|evt|cus|pi|ch|in|sub|si|price|prod|acct|gen|batch"
    r"|fc|rs|trace|span)[_-]|iVBOR|R0lGOD|/9j/|UklGR|PHN2|JVBER|AAAA"
)

HINTS = (
    "sk-", "akia", "asia", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "xapp-", "eyj", "aiza",
    "ya29.", "hf_", "_live_", "_test_", "whsec_", "sg.", "bearer", "basic", "digest", "apikey", "private key", "://",
    "npm", "pypi", "dckr_pat", "dop_v1", "shpat", "shpss", "hvs", "gsk", "pplx", "r8", "nvapi", "xai", "lin_api", "sbp",
    "key", "figd", "glsa", "atatt3", "eaa", ":aa", "hooks.slack", "/webhooks/", "--user", "--proxy-user", " -u",
    *("gl" + middle for middle in ("pat-", "rt-", "dt-", "ptt-", "cbt-", "agent-", "soat-", "ft-", "imt-")),
)  # fmt: skip
_NAMES = (
    "pass", "pw", "wort", "contrase", "senha", "wachtwoord", "haslo", "hasło", "senord", "salasana", "пароль",
    "パスワード", "密", "비밀번호", "mdp", "heslo", "adgangskode", "ifre", "khẩu", "khau",
    "κωδικ", "סיסמה", "كلمة", "पासवर्ड", "รหัส", "tan", "credential", "secret", "token", "key", "pin", "otp",
    "cvv", "cvc", "code",
)  # fmt: skip

SUSPECT = (
    r"sk-[A-Za-z0-9_\-]{16}|A[KS]IA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_|xox[a-z]-|xapp-|AIza|ya29\.",
    r"hf_[A-Za-z0-9]{20}|gl[a-z]{2,5}-[A-Za-z0-9_\-]{16}|k_(?:live|test)_|whsec_|SG\.|eyJ[A-Za-z0-9_\-]{8}|PRIVATE KEY",
    r"[A-Za-z0-9_\-]{24}|[0-9]{8}:AA|hooks\.slack\.com|/api/webhooks/",
    r"(?i:bearer|basic|digest|apikey|token)(?:\\t|[ \t])",
    r"(?: -u|--user|--proxy-user)",
    rf"(?i:{_SECRET})(?:[_.A-Z-][A-Za-z_.-]*)?(?:\\.|[^A-Za-z0-9])*(?:[:=>}}]|(?i:is|was|lautet|es|é|è|to|value|string|int)|は|是|[는은])",
    r'(?i:pass)(?:\\*" ?:|=)',
    rf"-(?i:{_SECRET}) ",
    r"(?:(?i:(?:^|[^A-Za-z]|\\[a-z])(?:pin|otp|tan|cv[vc]))|[a-z](?:Pin|PIN|Otp|OTP|Cv[vc]|CV[VC])|(?i:passcode"
    r"|(?:security|verification|confirmation|time|access|unlock)[ _.-]?[cp]))(?s:.*)[0-9]{3}",
    r"[?&;][A-Za-z0-9._\-]+=[^&\s]{8}",
    r"(?i:cookie)(?:\\.|[^A-Za-z0-9]){0,8}[:=]",
    r"[A-Za-z0-9]{20}",
)


def replace_credentials(text: str, lowered: str, mark: Mark) -> str:
    """Replaces keys, passwords and tokens by `<KEY>`, and cookies and sessions by `<COOKIE>`.

    Args:
        lowered: the text in lower case.
    """

    def key(match: re.Match[str]) -> str:
        kept = match.groupdict().get("kept") or ""
        value = match[0][len(kept) :]
        return kept + mark("KEY", value, value)

    def parameter(match: re.Match[str]) -> str:
        return match["kept"] + mark("COOKIE" if match["session"] else "KEY", match["value"], match["value"])

    def cookie(match: re.Match[str]) -> str:
        if match["set"]:
            name, _, value = match["first"].partition("=")
            return f"{match['kept']}{name}={mark('COOKIE', value, value)}{match['others']}"
        value = match["first"] + match["others"]
        return match["kept"] + mark("COOKIE", value, value)

    if "private key" in lowered:
        text = _private_keys(text, mark)
    if "cookie" in lowered:
        text = _COOKIE.sub(cookie, text)
    if any(hint in lowered for hint in HINTS):
        text = _URL_CREDENTIALS.sub(key, text)
        text = _WEBHOOK.sub(key, text)
        text = _KEY.sub(key, text)
        text = _COMMAND_LINE.sub(key, text)
    if "=" in text:
        text = _PARAMETER.sub(parameter, text)
    if any(name in lowered for name in _NAMES) or "bearer" in lowered or "basic" in lowered or "digest" in lowered:
        text = _AUTHORIZATION.sub(key, text)
        text = _QUOTED.sub(key, text)
        text = _NAMED.sub(key, text)
        text = _FLAG.sub(key, text)
        text = _PIN.sub(key, text)
    if _ALNUM.search(text):
        text = _TOKEN.sub(lambda match: key(match) if _is_random(match[0]) else match[0], text)
    return text


def _private_keys(text: str, mark: Mark) -> str:
    parts, position = [], 0
    while begin := _PRIVATE_KEY.search(text, position):
        end = _PRIVATE_KEY_END.search(text, begin.end())
        after = end.end() if end else len(text)  # a truncated key extends to the end
        found = text[begin.start() : after]
        parts += [text[position : begin.start()], mark("KEY", found, found)]
        position = after
    return "".join([*parts, text[position:]]) if parts else text


def _is_random(token: str) -> bool:
    """Whether a token looks random: three kinds of characters that alternate often, digits in several places, and a
    high Shannon entropy.

    Words, identifiers, paths, UUIDs, hexadecimal hashes and order numbers fail at least one of these tests.
    """
    if _IDS.match(token) or not _ALNUM.search(token):
        return False
    plain = re.sub(r"[^A-Za-z0-9]", "", token)
    classes = plain.translate(_CLASSES)
    if len(set(classes)) < 3 or len(_NUMBERS.findall(plain)) < 2:  # one number may end or join words
        return False
    changes = sum(one != other for one, other in pairwise(classes))
    return changes >= 0.3 * len(plain) and entropy(plain) >= 3.5


def entropy(text: str) -> float:
    """Returns the Shannon entropy in bits per character."""
    return -sum(n / len(text) * log2(n / len(text)) for n in Counter(text).values())
