"""A judge: a model behind an OpenAI-compatible address that the config names. No jax.

One request a question: POST {url}/chat/completions with one message of the user. Nothing is sent to
any other address: redirects are refused. The key comes from an environment variable, and is in no
file and no message.
"""

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from manu_jax.config import JudgeSection
from manu_jax.types import ManuError

WORTH_RETRYING = (408, 409, 425, 429, 500, 502, 503, 504)  # of HTTP
SHOWN = 200  # characters of what a server said, in an error


@dataclasses.dataclass(frozen=True)
class Judge:
    """A judge that can be asked; make one with `judge_of`."""

    section: JudgeSection
    key: str = dataclasses.field(default="", repr=False)

    @property
    def address(self) -> str:
        return f"{self.section.url.rstrip('/')}/chat/completions"

    def ask(self, message: str) -> str:
        """Return what the judge says to a message.

        Raises ManuError where the server refuses, says something else than a reply, or gives none
        after all retries.
        """
        section = self.section
        body: dict[str, Any] = {
            "model": section.model,
            "messages": [{"role": "user", "content": message}],
        }
        given = {"temperature": section.temperature, "max_tokens": section.max_tokens}
        body |= {name: value for name, value in given.items() if value is not None}
        reason = ""
        for number in range(section.retries + 1):
            if number:
                time.sleep(section.wait * 2 ** (number - 1))
            try:
                return self._reply(self._post(json.dumps(body).encode()))
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(SHOWN * 4).decode("utf-8", "replace")
                reason = f"HTTP {error.code}, {said[:SHOWN]!r}"
                if error.code not in WORTH_RETRYING:
                    break
            except (OSError, http.client.HTTPException) as error:  # timeouts among them
                reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise ManuError(
            f"evaluate.judge: {self.address} gives no reply ({reason}). What is judged is kept: "
            "mend url, model or key_env, or start the server, and give the command again."
        )

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.address, body, headers, method="POST")
        with _OPENER.open(request, timeout=self.section.timeout) as response:
            return response.read()

    def _reply(self, content: bytes) -> str:
        """Return the text of a reply; a reply without text is an empty one."""
        try:
            said = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            said = content
        if said is not None and not isinstance(said, str):
            shown = content[:SHOWN].decode("utf-8", "replace")
            raise ManuError(
                f"evaluate.judge: {self.address} says {shown!r}, which is no chat completion. Is "
                "url the address of an OpenAI-compatible server, up to /v1?"
            )
        return said or ""


def judge_of(section: JudgeSection, environment: Mapping[str, str] = os.environ) -> Judge:
    """Return the judge of a section; ManuError where the variable of its key is not set."""
    if section.key_env is None:
        return Judge(section)
    key = environment.get(section.key_env, "").strip()
    if not key:
        raise ManuError(
            f"evaluate.judge.key_env: the environment variable {section.key_env} is not set. "
            "Export it with the judge's key, or leave key_env out if it needs none."
        )
    if not (key.isascii() and key.isprintable()):
        raise ManuError(
            f"evaluate.judge.key_env: {section.key_env} holds characters that no key has. Export "
            "it anew."
        )
    return Judge(section, key)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: texts and key go to the address of the config alone."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
