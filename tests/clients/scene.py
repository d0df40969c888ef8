"""Programs that use an SDK: each plays one scene of one session."""

import json
import os
import secrets
import subprocess

from parts import Failure, check

SECONDS = 90


class Sdk:
    """One of the SDKs, which plays scenes."""

    def __init__(self, world, command, folder):
        self.world = world
        self._command, self._folder = command, os.path.abspath(folder)
        self._runs = 0

    def begin(self, scene, before=None, session=None, directly=False, by=None):
        """Begins a scene. `before` runs before the first request; `session` is an old one to resume.

        `directly`: the SDK calls the upstream itself, with one of its keys. `by`: it calls this replica
        itself, with nothing between.
        """
        self._runs += 1
        recorder = self.world.direct if directly else self.world.recorder
        address = self.world.address(by) if by else recorder.address
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": self.world.parts.folder,
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": self._folder,
            "PYTHONDONTWRITEBYTECODE": "1",
            "SDK": self._folder,
            "OPENAI_BASE_URL": f"http://{address}/v1",
            "OPENAI_API_KEY": self.world.keys[0][2] if directly else self.world.token,
        }
        return Scene(self.world, f"scene-{self._runs}", [*self._command, scene], environment, (before, session, recorder))


class Scene:
    """A program that plays one scene of one session."""

    def __init__(self, world, name, command, environment, circumstances):
        before, session, self._recorder = circumstances
        self.session = session or secrets.token_hex(16)
        if before:
            before(self)
        self._before = len(self._recorder.exchanges)
        self._said = world.parts.path(f"{name}.out")
        self._log = lambda: world.parts.log(name)
        with open(self._said, "wb") as output:
            self._child = world.parts.start(name, [*command, self.session], environment, output=output)

    @property
    def exchanges(self):
        return self._recorder.exchanges[self._before :]

    def printed(self):
        """The output of the program, which must end successfully."""
        try:
            status = self._child.wait(SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failure(f"the scene did not end within {SECONDS} s") from error
        check(status == 0, f"the scene ended with {status}:\n{self._log()}")
        with open(self._said, encoding="utf-8") as said:
            return json.load(said)

    def answers(self, count):
        """Checks that every answer is a text."""
        answers = self.printed()
        are_whole = all(one["status"] == "completed" and one["text"] for one in answers)
        check(len(answers) == count and are_whole, f"{count} answers and not {answers}")
        return answers
